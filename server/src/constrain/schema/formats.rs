//! Formats of strings as regular expressions. Each matches only what the format's standard allows, not all of it: what is left out is
//! what is rare and hard to write down, such as quoted local parts of mail addresses and dates before the year 1000.

pub(super) enum Format {
    /// Anchored.
    Pattern(String),
    Integer {
        min: i64,
        max: i64,
    },
    /// Says nothing that is checked by validators, by its definition.
    Annotation,
}

/// RFC 3339, section 5.6, with the lengths of months, leap years of the Gregorian calendar, and no leap seconds.
const DATE: &str = concat!(
    "(?:[12][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "|(?:[12][0-9](?:0[48]|[2468][048]|[13579][26])|(?:12|16|20|24|28)00)-02-29)"
);
const TIME: &str =
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
/// RFC 3339, appendix A.
const DURATION: &str = concat!(
    "P(?:[0-9]{1,9}W|(?:[0-9]{1,9}Y(?:[0-9]{1,9}M(?:[0-9]{1,9}D)?)?|[0-9]{1,9}M(?:[0-9]{1,9}D)?|[0-9]{1,9}D)",
    "(?:T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S))?",
    "|T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S))"
);
/// RFC 1123: labels of up to 63 letters, digits and inner hyphens; few enough of them for the limit of 253.
const HOSTNAME: &str =
    "[a-zA-Z0-9](?:[a-zA-Z0-9]|-[a-zA-Z0-9]){0,30}(?:\\.[a-zA-Z0-9](?:[a-zA-Z0-9]|-[a-zA-Z0-9]){0,30}){0,2}";
/// RFC 5321, section 4.1.2: a dot-string of at most 64 characters at a domain.
const EMAIL_LOCAL: &str = "[a-zA-Z0-9_+-]{1,20}(?:\\.[a-zA-Z0-9_+-]{1,20}){0,2}";
const IPV4: &str =
    "(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
/// RFC 4291, section 2.2, without embedded IPv4 addresses.
const IPV6: &str = concat!(
    "(?:(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|(?:[0-9a-fA-F]{1,4}:){1,7}:",
    "|(?:[0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4}|(?:[0-9a-fA-F]{1,4}:){1,5}(?::[0-9a-fA-F]{1,4}){1,2}",
    "|(?:[0-9a-fA-F]{1,4}:){1,4}(?::[0-9a-fA-F]{1,4}){1,3}|(?:[0-9a-fA-F]{1,4}:){1,3}(?::[0-9a-fA-F]{1,4}){1,4}",
    "|(?:[0-9a-fA-F]{1,4}:){1,2}(?::[0-9a-fA-F]{1,4}){1,5}|[0-9a-fA-F]{1,4}:(?::[0-9a-fA-F]{1,4}){1,6}",
    "|:(?::[0-9a-fA-F]{1,4}){1,7}|::)"
);
/// RFC 4122.
const UUID: &str = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}";
/// RFC 3986: a scheme, then an authority with a registered name and a path, or a path alone.
const URI: &str = concat!(
    "[a-zA-Z][a-zA-Z0-9+.-]*:(?://[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]{1,4})?",
    "(?:/(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})*)*",
    "|(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})+(?:/(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})*)*)",
    "(?:\\?(?:[a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-fA-F]{2})*)?(?:#(?:[a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-fA-F]{2})*)?"
);
/// RFC 6901.
const JSON_POINTER: &str = "(?:/(?:[^/~]|~[01])*)*";
/// RFC 4648, section 4.
const BASE64: &str = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?";

const NAMES: &[&str] = &[
    "date",
    "time",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "json-pointer",
    "byte",
    "int32",
    "int64",
    "float",
    "double",
    "password",
];

pub(super) fn names() -> String {
    NAMES.join(", ")
}

pub(super) fn find(name: &str) -> Option<Format> {
    let whole = |pattern: &str| Format::Pattern(format!("^(?:{pattern})$"));
    Some(match name {
        "date" => whole(DATE),
        "time" => whole(TIME),
        "date-time" => whole(&format!("{DATE}T{TIME}")),
        "duration" => whole(DURATION),
        "email" => whole(&format!("{EMAIL_LOCAL}@{HOSTNAME}")),
        "hostname" => whole(HOSTNAME),
        "ipv4" => whole(IPV4),
        "ipv6" => whole(IPV6),
        "uuid" => whole(UUID),
        "uri" => whole(URI),
        "json-pointer" => whole(JSON_POINTER),
        "byte" => whole(BASE64),
        "int32" => Format::Integer { min: i64::from(i32::MIN), max: i64::from(i32::MAX) },
        // As far as whole numbers are exact.
        "int64" => Format::Integer { min: -(1 << 53), max: 1 << 53 },
        "float" | "double" | "password" => Format::Annotation,
        _ => return None,
    })
}

/// Refuses what the engine reads differently from ECMA 262, which schemas are written for.
pub(super) fn check_pattern(pattern: &str) -> Result<(), String> {
    let mut bytes = pattern.bytes().peekable();
    let mut in_class = false;
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next() {
                Some(escaped @ (b'b' | b'B')) if !in_class => {
                    return Err(format!(
                        "has `\\{}`, a word boundary, which is not enforced",
                        char::from(escaped)
                    ));
                }
                Some(escaped @ (b'A' | b'z' | b'Z' | b'a' | b'h' | b'H' | b'k' | b'c' | b'0'..=b'9')) => {
                    return Err(format!("has `\\{}`, which is not enforced", char::from(escaped)));
                }
                Some(_) => {}
                None => return Err("ends in a backslash".to_owned()),
            },
            b'[' if !in_class => in_class = true,
            // In ECMA 262 a letter like any other, here the beginning of a nested class.
            b'[' if in_class => return Err("has `[` in a class; write `\\[`".to_owned()),
            b']' => in_class = false,
            b'&' | b'~' | b'-' if in_class && bytes.peek() == Some(&byte) => {
                return Err(format!(
                    "has `{0}{0}` in a class, which means something else here",
                    char::from(byte)
                ));
            }
            b'(' if !in_class => {
                let rest: Vec<u8> = bytes.clone().take(3).collect();
                let is_plain = rest.first() != Some(&b'?');
                let is_group = rest.starts_with(b"?:")
                    || (rest.starts_with(b"?<") && !matches!(rest.get(2), Some(b'=' | b'!')));
                if !is_plain && !is_group {
                    return Err("looks ahead or behind, or sets flags, which is not enforced".to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(())
}
