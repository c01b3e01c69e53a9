//! Pictures from other machines: one small HTTP client that reaches only what the operator allows. Host and addresses are checked in the
//! resolver, which every connection goes through, that of each redirect too, and which hands the connector exactly the addresses that it
//! checked: a name that answers differently the next time changes nothing.

use super::address::{AddressRule, HostRule, is_public, normalize_host};
use super::error::ImageInputError;
use crate::blocking::Blocking;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use ureq::http::{StatusCode, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error, Timeout};

/// What may be fetched, and at what cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotePolicy {
    pub hosts: Hosts,
    /// Allowed although they are not public.
    pub addresses: Vec<AddressRule>,
    /// For one picture, from the look-up of its host to its last byte.
    pub timeout: Duration,
    pub max_redirects: u32,
    /// Of all remote pictures of one request.
    pub max_request_bytes: usize,
    /// Who vouches for hosts with https.
    pub authorities: Authorities,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authorities {
    /// Those that browsers trust, as they were when the server was built.
    Public,
    /// Certificates in DER; no others.
    Listed(Vec<Vec<u8>>),
}

impl Authorities {
    /// From a file of certificates in PEM, in which nothing else is looked at.
    pub fn from_pem(text: &[u8]) -> Result<Self, String> {
        let mut certificates = Vec::new();
        for item in parse_pem(text) {
            match item {
                Ok(PemItem::Certificate(certificate)) => certificates.push(certificate.der().to_vec()),
                Ok(_) => {}
                Err(_) => return Err("is not a file of certificates in PEM".into()),
            }
        }
        match certificates.is_empty() {
            true => Err("has no certificate in PEM".into()),
            false => Ok(Self::Listed(certificates)),
        }
    }

    fn roots(&self) -> RootCerts {
        match self {
            Self::Public => RootCerts::WebPki,
            Self::Listed(certificates) => {
                let owned = |der: &Vec<u8>| Certificate::from_der(der).to_owned();
                RootCerts::Specific(Arc::new(certificates.iter().map(owned).collect()))
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosts {
    /// Nothing is fetched.
    None,
    Listed(Vec<HostRule>),
    /// Whatever has a public address.
    Any,
}

impl Default for RemotePolicy {
    fn default() -> Self {
        Self {
            hosts: Hosts::None,
            addresses: Vec::new(),
            timeout: Duration::from_secs(5),
            max_redirects: 3,
            max_request_bytes: 64 << 20,
            authorities: Authorities::Public,
        }
    }
}

/// Longer ones are not addresses of pictures.
const URL_LEN_MAX: usize = 8 << 10;

impl RemotePolicy {
    pub fn is_enabled(&self) -> bool {
        self.hosts != Hosts::None
    }

    fn allows_uri(&self, uri: &Uri) -> bool {
        let (Some("http" | "https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return false;
        };
        // A name and password would be sent along, and confuse readers about which host is meant.
        let has_user = authority.as_str().contains('@');
        // The parser lets ports pass that are none, and connections then go to the usual one.
        let has_broken_port = authority.port_u16().is_none() && authority.as_str() != authority.host();
        if has_user || has_broken_port || authority.host().is_empty() {
            return false;
        }
        match &self.hosts {
            Hosts::None => false,
            Hosts::Any => true,
            Hosts::Listed(rules) => {
                let host = normalize_host(authority.host());
                rules.iter().any(|rule| rule.matches(&host))
            }
        }
    }

    fn allows_address(&self, address: SocketAddr) -> bool {
        is_public(address.ip()) || self.addresses.iter().any(|rule| rule.matches(address))
    }
}

/// The bytes that one request may still fetch, shared by its fetches.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    left: Arc<AtomicUsize>,
    limit: usize,
}

impl ByteBudget {
    pub fn new(limit: usize) -> Self {
        Self { left: Arc::new(AtomicUsize::new(limit)), limit }
    }

    fn take(&self, bytes: usize) -> Result<(), ImageInputError> {
        let taken = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes));
        taken.map(drop).map_err(|_| ImageInputError::TooManyRemoteBytes { limit: self.limit })
    }
}

#[derive(Debug)]
pub struct RemoteFetcher {
    agent: Agent,
    policy: Arc<RemotePolicy>,
    max_bytes: usize,
}

impl RemoteFetcher {
    /// `max_bytes` is the limit of one picture.
    pub fn new(policy: RemotePolicy, max_bytes: usize) -> Self {
        Self::with_resolver(policy, max_bytes, DefaultResolver::default())
    }

    fn with_resolver(policy: RemotePolicy, max_bytes: usize, resolver: impl Resolver) -> Self {
        let policy = Arc::new(policy);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A proxy would look up the host itself, and so undo the check of addresses.
            .proxy(None)
            .timeout_global(Some(policy.timeout))
            .max_redirects(policy.max_redirects)
            // A connection serves one picture: the next one is checked again.
            .max_idle_connections(0)
            .user_agent(concat!("perilune/", env!("CARGO_PKG_VERSION")))
            .accept("image/*")
            .tls_config(TlsConfig::builder().root_certs(policy.authorities.roots()).build())
            .build();
        let guard = Guard { inner: resolver, policy: policy.clone() };
        Self { agent: Agent::with_parts(config, DefaultConnector::default(), guard), policy, max_bytes }
    }

    pub fn policy(&self) -> &RemotePolicy {
        &self.policy
    }

    /// The bytes behind an http or https URL. What kind of picture they are is told by themselves.
    pub fn fetch(&self, _: &Blocking, url: &str, budget: &ByteBudget) -> Result<Vec<u8>, ImageInputError> {
        if !self.policy.is_enabled() {
            return Err(ImageInputError::Remote);
        }
        if url.len() > URL_LEN_MAX {
            return Err(ImageInputError::NotAUrl);
        }
        // The one parser: what it makes of the text is what is checked and what is fetched.
        let uri: Uri = url.trim().parse().map_err(|_| ImageInputError::NotAUrl)?;
        if !self.policy.allows_uri(&uri) {
            return Err(ImageInputError::HostNotAllowed);
        }
        let response = self.agent.get(uri).call().map_err(|error| self.fetch_error(error))?;
        if response.status() != StatusCode::OK {
            return Err(ImageInputError::RemoteStatus { status: response.status().as_u16() });
        }
        let length = response
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: usize| length > self.max_bytes) {
            return Err(self.too_many_bytes());
        }
        self.read(response.into_body().into_reader(), budget)
    }

    fn read(&self, mut body: impl Read, budget: &ByteBudget) -> Result<Vec<u8>, ImageInputError> {
        let mut bytes = Vec::new();
        let mut piece = [0; 16 << 10];
        loop {
            let len = body.read(&mut piece).map_err(|error| self.fetch_error(Error::from(error)))?;
            if len == 0 {
                return Ok(bytes);
            }
            if bytes.len() + len > self.max_bytes {
                return Err(self.too_many_bytes());
            }
            budget.take(len)?;
            bytes.extend_from_slice(&piece[..len]);
        }
    }

    fn too_many_bytes(&self) -> ImageInputError {
        ImageInputError::TooManyBytes { bytes: self.max_bytes + 1, limit: self.max_bytes }
    }

    /// What the client is told: nothing that it could map a network by.
    fn fetch_error(&self, error: Error) -> ImageInputError {
        match error {
            Error::Other(error) if error.is::<NotAllowed>() => ImageInputError::HostNotAllowed,
            Error::Other(error) if error.is::<LookUpFailed>() => ImageInputError::LookUpFailed,
            Error::Timeout(Timeout::Resolve) => ImageInputError::LookUpTooSlow { limit: self.policy.timeout },
            Error::Timeout(_) => ImageInputError::RemoteTooSlow { limit: self.policy.timeout },
            Error::TooManyRedirects => ImageInputError::TooManyRedirects { limit: self.policy.max_redirects },
            error => {
                tracing::debug!(%error, "failed to fetch a picture");
                ImageInputError::RemoteFailed
            }
        }
    }
}

/// Lets names be looked up, and looks at the answers. A name that has an address that is not allowed among its addresses is not used at
/// all: it is not worth finding out which one its owner means.
#[derive(Debug)]
struct Guard<R> {
    inner: R,
    policy: Arc<RemotePolicy>,
}

/// Also of names that cannot be found: that a name exists inside of a network is nobody else's business.
#[derive(Debug, thiserror::Error)]
#[error("host is not allowed or cannot be found")]
struct NotAllowed;

#[derive(Debug, thiserror::Error)]
#[error("host cannot be looked up")]
struct LookUpFailed;

/// Whether it is the look-up that does not work, whatever the name. The standard library keeps the system's number (EAI_AGAIN) to itself; these
/// are its words in glibc and musl.
fn is_temporary(error: &Error) -> bool {
    let text = error.to_string();
    ["Temporary failure in name resolution", "Try again"].iter().any(|sign| text.contains(sign))
}

impl<R: Resolver> Resolver for Guard<R> {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let refuse = || Error::Other(Box::new(NotAllowed));
        if !self.policy.allows_uri(uri) {
            return Err(refuse());
        }
        let addresses = self.inner.resolve(uri, config, timeout).map_err(|error| {
            tracing::info!(%error, "failed to look up the host of a picture");
            // Which of the operator's own hosts exist is no secret.
            let is_named = matches!(self.policy.hosts, Hosts::Listed(_));
            match error {
                // Whatever limit it was, the look-up is what ran into it.
                Error::Timeout(_) => Error::Timeout(Timeout::Resolve),
                error if is_named || is_temporary(&error) => Error::Other(Box::new(LookUpFailed)),
                _ => refuse(),
            }
        })?;
        match addresses.iter().all(|&address| self.policy.allows_address(address)) {
            true => Ok(addresses),
            false => {
                tracing::info!("refused to fetch a picture: its host has an address that is not public");
                Err(refuse())
            }
        }
    }
}

#[cfg(test)]
mod tests;
