//! A route as others see it: without its handler.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Probes and metrics, for machines that have no key; the page, which holds no secret.
    Open,
    /// One of the configured keys, where there are any.
    Key,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub method: &'static str,
    pub path: &'static str,
    /// The same route with and without `/v1`; the page's files have one path.
    pub pair: [&'static str; 2],
    pub access: Access,
}
