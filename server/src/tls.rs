//! TLS as the operator sets it up: certificates and keys in PEM, read from files that may change.

use crate::reload::{FileError, FromFiles, NamedFile};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::PathBuf;
use std::sync::Arc;

/// What a server shows and whom it believes.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate, and after it those that lead to an authority.
    pub certificates: PathBuf,
    /// PKCS #8, PKCS #1 (RSA) or SEC 1 (elliptic curves); `None`: it is in the file of the certificate.
    pub key: Option<PathBuf>,
    /// Authorities of clients' certificates.
    pub authorities: Option<PathBuf>,
    pub clients: Clients,
}

/// Whether clients show a certificate of one of the authorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// They are not asked for one.
    Any,
    /// Who shows one has to show a good one.
    Checked,
    Known,
}

pub const CERTIFICATES: &str = "ssl-certfile";
pub const KEY: &str = "ssl-keyfile";
pub const AUTHORITIES: &str = "ssl-ca-certs";

/// For `accept`; each connection takes the newest.
pub type Tls = FromFiles<ServerConfig>;

pub fn open(files: TlsFiles) -> Result<Tls, FileError> {
    let TlsFiles { certificates, key, authorities, clients } = files;
    let key = key.unwrap_or_else(|| certificates.clone());
    let mut named =
        vec![NamedFile { flag: CERTIFICATES, path: certificates }, NamedFile { flag: KEY, path: key }];
    named.extend(authorities.map(|path| NamedFile { flag: AUTHORITIES, path }));
    FromFiles::open("certificate", named, Box::new(move |files, contents| build(files, contents, clients)))
}

fn build(files: &[NamedFile], contents: &[Vec<u8>], clients: Clients) -> Result<ServerConfig, FileError> {
    let chain = parse_certificates(&files[0], &contents[0])?;
    let key = parse_key(&files[1], &contents[1])?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3");
    let builder = match (files.get(2), clients) {
        (None, _) | (_, Clients::Any) => builder.with_no_client_auth(),
        (Some(file), clients) => {
            let mut roots = RootCertStore::empty();
            for certificate in parse_certificates(file, &contents[2])? {
                roots.add(certificate).map_err(|error| {
                    file.error(format_args!("has a certificate that is no authority's: {error}"))
                })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match clients {
                Clients::Checked => verifier.allow_unauthenticated(),
                Clients::Any | Clients::Known => verifier,
            };
            let verifier =
                verifier.build().map_err(|error| file.error(format_args!("cannot be used: {error}")))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => files[1].error(format_args!(
            "has a key that is not the one of the certificate in {}",
            files[0].path.display()
        )),
        rustls::Error::InvalidCertificate(_) => files[0].error(format_args!("cannot be used: {error}")),
        error => files[1].error(format_args!("has a key that cannot be used: {error}")),
    })?;
    // A client that can do nothing else, such as HTTP/2 alone, is told so by TLS.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn parse_certificates(file: &NamedFile, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let certificates: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    let certificates =
        certificates.map_err(|error| file.error(format_args!("is not a file in PEM: {error}")))?;
    match certificates.is_empty() {
        true => Err(file.error("has no certificate in PEM")),
        false => Ok(certificates),
    }
}

fn parse_key(file: &NamedFile, text: &[u8]) -> Result<PrivateKeyDer<'static>, FileError> {
    // Both older and newer forms say it in words.
    if text.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED) {
        return Err(file.error("has an encrypted key: a server has nobody to ask for its password"));
    }
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => file.error("has no private key in PEM"),
        error => file.error(format_args!("is not a file in PEM: {error}")),
    })
}

const ENCRYPTED: &[u8] = b"ENCRYPTED";
