//! What the flags about pictures by address mean.

use super::{ConfigError, fail, parse_all, strings};
use crate::chat::image::remote::{Authorities, Hosts};
use serde_json::{Value, json};
use std::path::Path;

/// A list of hosts says that these are allowed; with or without the other flag, no other is.
pub fn hosts(any: bool, listed: &[String]) -> Result<Hosts, ConfigError> {
    Ok(match (listed, any) {
        ([], false) => Hosts::None,
        ([], true) => Hosts::Any,
        (listed, _) => Hosts::Listed(parse_all("allowed-media-domains", listed)?),
    })
}

pub fn authorities(file: Option<&Path>) -> Result<Authorities, ConfigError> {
    let Some(file) = file else { return Ok(Authorities::Public) };
    let fail = |message: String| fail("media-ca-file")(format!("{} {message}", file.display()));
    let text = std::fs::read(file).map_err(|error| fail(format!("cannot be read: {error}")))?;
    Authorities::from_pem(&text).map_err(fail)
}

/// How many there are says enough.
pub fn authorities_json(authorities: &Authorities) -> Value {
    match authorities {
        Authorities::Public => json!("public"),
        Authorities::Listed(certificates) => json!(certificates.len()),
    }
}

pub fn hosts_json(hosts: &Hosts) -> Value {
    match hosts {
        Hosts::None => json!(false),
        Hosts::Any => json!(true),
        Hosts::Listed(rules) => json!(strings(rules)),
    }
}
