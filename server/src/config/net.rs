//! What the flags about connections mean.

use super::{ConfigError, fail, of_file};
use crate::args::TlsArgs;
use crate::http::ListenOn;
use crate::tls::{self, Clients, Tls, TlsFiles};
use serde_json::{Value, json};
use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

/// A file takes the place of address and port.
pub fn listen_on(
    host: String,
    port: u16,
    uds: Option<PathBuf>,
    permissions: &str,
) -> Result<ListenOn, ConfigError> {
    let mode = u32::from_str_radix(permissions, 8).ok().filter(|mode| *mode <= 0o777);
    let mode = mode.ok_or_else(|| {
        fail("uds-permissions")(format!("`{permissions}` is not an octal number such as 660"))
    })?;
    match uds {
        Some(path) if path.as_os_str().is_empty() => Err(fail("uds")("is empty".into())),
        Some(path) => Ok(ListenOn::Unix { path, mode }),
        None => Ok(ListenOn::Tcp { host, port }),
    }
}

/// Whether only this machine reaches what listens on a host: all that it stands for are loopback addresses. Names, and short forms such as `127.1`,
/// are looked up as they are for listening. What cannot be looked up cannot be listened on either, and promises nothing.
pub fn is_loopback(host: &str) -> bool {
    let Ok(addresses) = (host, 0).to_socket_addrs() else { return false };
    let addresses: Vec<IpAddr> = addresses.map(|address| address.ip().to_canonical()).collect();
    !addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback)
}

/// What requests call a server that listens on a host, besides what they may in any case: none where it is an address.
pub fn own_names(host: &str) -> Vec<String> {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let is_new = name != "localhost" && host.parse::<IpAddr>().is_err();
    is_new.then_some(name).into_iter().collect()
}

/// Without a slash at its end.
pub fn root_path(path: Option<String>) -> Result<String, ConfigError> {
    let path = path.unwrap_or_default();
    let path = path.trim_end_matches('/');
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    match path.is_empty() || (path.starts_with('/') && !path.contains("//") && path.bytes().all(is_plain)) {
        true => Ok(path.to_owned()),
        false => Err(fail("root-path")(format!("`{path}` is not a path such as /models/a"))),
    }
}

pub fn tls(args: TlsArgs) -> Result<Option<Arc<Tls>>, ConfigError> {
    let TlsArgs { ssl_certfile, ssl_keyfile, ssl_ca_certs, ssl_cert_reqs } = args;
    let Some(certificates) = ssl_certfile else {
        let given = [
            (tls::KEY, ssl_keyfile.is_some()),
            (tls::AUTHORITIES, ssl_ca_certs.is_some()),
            (CLIENTS, ssl_cert_reqs.is_some_and(|number| number > 0)),
        ];
        return match given.iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => Err(fail(flag)("needs --ssl-certfile".into())),
            None => Ok(None),
        };
    };
    let clients = match (ssl_cert_reqs, &ssl_ca_certs) {
        (None | Some(2), Some(_)) => Clients::Known,
        (Some(1), Some(_)) => Clients::Checked,
        (None | Some(0), _) => Clients::Any,
        (Some(_), None) => return Err(fail(CLIENTS)("needs --ssl-ca-certs".into())),
        (Some(_), Some(_)) => return Err(fail(CLIENTS)("must be 0, 1 or 2".into())),
    };
    let files = TlsFiles { certificates, key: ssl_keyfile, authorities: ssl_ca_certs, clients };
    let tls = tls::open(files).map_err(of_file)?;
    Ok(Some(Arc::new(tls)))
}

const CLIENTS: &str = "ssl-cert-reqs";

/// Flags and paths.
pub fn tls_json(tls: Option<&Arc<Tls>>) -> Value {
    tls.map_or(Value::Null, |tls| {
        tls.files().iter().map(|file| (file.flag.replace('-', "_"), json!(file.path))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a network: localhost is in every machine's own list, and addresses are not asked for.
    #[test]
    fn who_reaches_a_host() {
        for near in ["localhost", "127.0.0.1", "127.8.9.1", "127.1", "::1", "::ffff:127.0.0.1"] {
            assert!(is_loopback(near), "{near}");
        }
        for open in ["0.0.0.0", "0", "::", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "a\0b"] {
            assert!(!is_loopback(open), "{open}");
        }
        for (host, names) in [
            ("localhost", &[][..]),
            ("127.0.0.1", &[]),
            ("::1", &[]),
            ("Box.", &["box"]),
            ("127.1", &["127.1"]),
        ] {
            assert_eq!(own_names(host), names, "{host}");
        }
    }
}
