//! Which hosts and addresses pictures may be fetched from. A request's URL is written by a stranger, and this machine sees more of the
//! network than the stranger does: itself, its neighbours, and the cloud's metadata service.
//!
//! What is public is decided by IANA's registries of special-purpose addresses (RFC 6890 and what was added since).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A range of addresses: those that begin with the same `prefix` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Net {
    address: IpAddr,
    prefix: u8,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Net {
    Net { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
}

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Net {
    Net { address: IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)), prefix }
}

#[rustfmt::skip]
const NOT_PUBLIC: [Net; 20] = [
    v4(0, 0, 0, 0, 8),          // this host
    v4(10, 0, 0, 0, 8),         // private
    v4(100, 64, 0, 0, 10),      // carrier-grade NAT
    v4(127, 0, 0, 0, 8),        // loopback
    v4(169, 254, 0, 0, 16),     // link-local, and clouds' metadata services
    v4(172, 16, 0, 0, 12),      // private
    v4(192, 0, 0, 0, 24),       // protocol assignments
    v4(192, 0, 2, 0, 24),       // documentation
    v4(192, 88, 99, 0, 24),     // relays of 6to4, deprecated
    v4(192, 168, 0, 0, 16),     // private
    v4(198, 18, 0, 0, 15),      // benchmarks
    v4(198, 51, 100, 0, 24),    // documentation
    v4(203, 0, 113, 0, 24),     // documentation
    v4(224, 0, 0, 0, 4),        // multicast
    v4(240, 0, 0, 0, 4),        // reserved, and broadcast
    // Inside of IPv6's global unicast, 2000::/3. All else of IPv6 is refused as a whole: loopback, unique local, link-local, multicast,
    // and IPv4 addresses that are mapped into it or translated (::ffff:0:0/96, 64:ff9b::/96, 64:ff9b:1::/48).
    v6(0x2001, 0, 0, 23),       // protocol assignments, with Teredo and benchmarks
    v6(0x2001, 0x0db8, 0, 32),  // documentation
    v6(0x2002, 0, 0, 16),       // 6to4, which carries an IPv4 address
    v6(0x3fff, 0, 0, 20),       // documentation
    v6(0x3ffe, 0, 0, 16),       // 6bone, given back
];

const GLOBAL_UNICAST: Net = v6(0x2000, 0, 0, 3);

impl Net {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                let differing = net.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => {
                let differing = net.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }
}

/// Whether anyone on the internet could reach this address too.
pub fn is_public(address: IpAddr) -> bool {
    (address.is_ipv4() || GLOBAL_UNICAST.contains(address))
        && !NOT_PUBLIC.iter().any(|net| net.contains(address))
}

/// Addresses that the operator allows although they are not public.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressRule {
    /// Any port of a range.
    Range(AddressRange),
    /// One port of one address.
    Exact(SocketAddr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange(Net);

impl AddressRule {
    pub fn matches(&self, address: SocketAddr) -> bool {
        match self {
            AddressRule::Range(AddressRange(net)) => net.contains(address.ip()),
            AddressRule::Exact(exact) => exact.ip() == address.ip() && exact.port() == address.port(),
        }
    }
}

impl FromStr for AddressRule {
    type Err = String;

    /// `10.1.2.0/24`, `fd00::/8`, `127.0.0.1`, `127.0.0.1:9000` or `[::1]:9000`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not an address, a range such as 10.1.2.0/24, or an address with a port");
        if let Ok(exact) = text.parse() {
            return Ok(AddressRule::Exact(exact));
        }
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits), |prefix| prefix.parse().map_err(|_| wrong()))?;
        if prefix > bits {
            return Err(wrong());
        }
        Ok(AddressRule::Range(AddressRange(Net { address, prefix })))
    }
}

impl fmt::Display for AddressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressRule::Range(AddressRange(Net { address, prefix })) => write!(f, "{address}/{prefix}"),
            AddressRule::Exact(exact) => write!(f, "{exact}"),
        }
    }
}

/// A host by its name or address, or with `*.` all names below one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRule(String);

impl HostRule {
    pub fn matches(&self, host: &str) -> bool {
        match self.0.strip_prefix('*') {
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => self.0 == host,
        }
    }
}

/// As hosts are compared: in lower case, without the dot that a full name may end with.
pub fn normalize_host(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

impl FromStr for HostRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        let is_v6 = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let is_v6 = is_v6.is_some_and(|name| name.parse::<Ipv6Addr>().is_ok());
        if (is_name && !name.starts_with('.')) || (is_v6 && name == text) {
            return Ok(HostRule(normalize_host(text)));
        }
        Err(format!(
            "`{text}` is not a host such as example.org or *.example.org; it has neither scheme nor port nor path"
        ))
    }
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For each range: its first and last address, and its neighbours on both sides.
    #[test]
    fn ranges_begin_and_end_where_the_registries_say() {
        #[rustfmt::skip]
        let ranges = [
            ("", "0.0.0.0", "0.255.255.255", "1.0.0.0"),
            ("9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"),
            ("100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"),
            ("126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"),
            ("169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"),
            ("172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"),
            ("191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"),
            ("192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0"),
            ("192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0"),
            ("192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"),
            ("198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"),
            ("198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0"),
            ("203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0"),
            ("223.255.255.255", "224.0.0.0", "255.255.255.255", ""),
            ("", "::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2000::"),
            ("2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"),
            ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"),
            ("2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"),
            ("3ffd:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3ffe::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"),
            ("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""),
        ];
        let public = |text: &str| is_public(text.parse().unwrap_or_else(|_| panic!("{text}")));
        for (before, first, last, after) in ranges {
            assert!(before.is_empty() || public(before), "{before} is public");
            assert!(!public(first), "{first} is not public");
            assert!(!public(last), "{last} is not public");
            assert!(after.is_empty() || public(after), "{after} is public");
        }
    }

    #[test]
    fn well_known_addresses() {
        for text in
            ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"]
        {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        #[rustfmt::skip]
        let refused = [
            "127.0.0.1", "169.254.169.254", "192.168.1.1", "100.100.100.200", "255.255.255.255", "::1", "::", "fe80::1",
            "fd00:ec2::254", "ff02::1", "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b::7f00:1",
            "64:ff9b:1::1", "100::1", "5f00::1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        ];
        for text in refused {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn rules_of_addresses() {
        let check = |rule: &str, matching: &[&str], other: &[&str]| {
            let rule: AddressRule = rule.parse().unwrap();
            matching.iter().for_each(|a| assert!(rule.matches(a.parse().unwrap()), "{rule} {a}"));
            other.iter().for_each(|a| assert!(!rule.matches(a.parse().unwrap()), "{rule} {a}"));
        };
        check("127.0.0.1", &["127.0.0.1:1"], &["127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:1"]);
        check("127.0.0.1:9000", &["127.0.0.1:9000"], &["127.0.0.1:9001", "127.0.0.2:9000"]);
        check("10.1.2.0/23", &["10.1.2.0:80", "10.1.3.255:80"], &["10.1.1.255:80", "10.1.4.0:80"]);
        check("0.0.0.0/0", &["1.2.3.4:5"], &["[::1]:5"]);
        check("fd00::/8", &["[fd12::1]:80"], &["[fe80::1]:80"]);
        check("[::1]:9000", &["[::1]:9000"], &["[::1]:1", "127.0.0.1:9000"]);
        for text in [
            "",
            "localhost",
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "1.2.3.4:99999",
        ] {
            assert!(text.parse::<AddressRule>().is_err(), "{text}");
        }
    }

    #[test]
    fn rules_of_hosts() {
        let matches =
            |rule: &str, host: &str| rule.parse::<HostRule>().unwrap().matches(&normalize_host(host));
        assert!(matches("Example.org", "example.ORG."));
        assert!(!matches("example.org", "a.example.org"));
        assert!(!matches("example.org", "example.org.evil.net"));
        assert!(matches("*.example.org", "a.b.example.org"));
        assert!(!matches("*.example.org", "example.org"));
        assert!(!matches("*.example.org", "evilexample.org"));
        assert!(!matches("*.example.org", ".example.org"));
        assert!(matches("127.0.0.1", "127.0.0.1"));
        assert!(matches("[::1]", "[::1]"));
        for text in
            ["", "*", "*.", "http://a.b", "a.b/c", "a.b:80", "a@b", "a b", "*.[::1]", "[::1", "ä.de", ".a"]
        {
            assert!(text.parse::<HostRule>().is_err(), "{text}");
        }
    }
}
