//! Certificates as tests need them, made on the spot: X.509 (RFC 5280) in DER, signed with ECDSA over P-256.

#![allow(dead_code)]

use base64::Engine;
use ring::rand::SystemRandom;
use ring::rsa;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

const ECDSA_WITH_SHA256: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x02";
const EC_PUBLIC_KEY: &[u8] = b"\x2a\x86\x48\xce\x3d\x02\x01";
const P256: &[u8] = b"\x2a\x86\x48\xce\x3d\x03\x01\x07";
const RSA_ENCRYPTION: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";
const COMMON_NAME: &[u8] = b"\x55\x04\x03";
const SUBJECT_ALT_NAME: &[u8] = b"\x55\x1d\x11";
const BASIC_CONSTRAINTS: &[u8] = b"\x55\x1d\x13";

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 6;
const INTEGER: u8 = 2;
const BIT_STRING: u8 = 3;
const OCTET_STRING: u8 = 4;
const NULL: u8 = 5;
const UTF8: u8 = 12;
const TIME: u8 = 24;

/// Tag, length, and the parts one after the other.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let len = content.len();
    let mut out = vec![tag];
    match len {
        0..128 => out.push(len as u8),
        128..256 => out.extend([0x81, len as u8]),
        _ => out.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    out.extend(content);
    out
}

fn name(common: &str) -> Vec<u8> {
    let pair = der(SEQUENCE, &[&der(OID, &[COMMON_NAME]), &der(UTF8, &[common.as_bytes()])]);
    der(SEQUENCE, &[&der(SET, &[&pair])])
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// A P-256 key, as PKCS #8.
struct Key {
    pkcs8: Vec<u8>,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key").as_ref().to_vec();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &pkcs8, &random).expect("its own");
        Self { pkcs8, pair }
    }

    fn public(&self) -> Vec<u8> {
        let algorithm = der(SEQUENCE, &[&der(OID, &[EC_PUBLIC_KEY]), &der(OID, &[P256])]);
        public(&algorithm, self.pair.public_key().as_ref())
    }
}

fn public(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    der(SEQUENCE, &[algorithm, &der(BIT_STRING, &[&[0], key])])
}

/// A certificate and its key, in PEM.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// Who signs certificates.
pub struct Authority {
    name: &'static str,
    key: Key,
    pub certificate: Vec<u8>,
}

impl Authority {
    pub fn new(name: &'static str) -> Self {
        let mut authority = Self { name, key: Key::new(), certificate: Vec::new() };
        let is_authority = der(SEQUENCE, &[&[1, 1, 0xff]]);
        authority.certificate = authority.sign(
            name,
            &authority.key.public(),
            BASIC_CONSTRAINTS,
            &is_authority,
            "21200101000000Z",
        );
        authority
    }

    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    fn sign(&self, subject: &str, public: &[u8], extension: &[u8], value: &[u8], until: &str) -> Vec<u8> {
        let algorithm = der(SEQUENCE, &[&der(OID, &[ECDSA_WITH_SHA256])]);
        let extension = der(SEQUENCE, &[&der(OID, &[extension]), &der(OCTET_STRING, &[value])]);
        let to_sign = der(
            SEQUENCE,
            &[
                &der(0xa0, &[&der(INTEGER, &[&[2]])]),
                &der(INTEGER, &[&[1]]),
                &algorithm,
                &name(self.name),
                &der(SEQUENCE, &[&der(TIME, &[b"20200101000000Z"]), &der(TIME, &[until.as_bytes()])]),
                &name(subject),
                public,
                &der(0xa3, &[&der(SEQUENCE, &[&extension])]),
            ],
        );
        let signature = self.key.pair.sign(&SystemRandom::new(), &to_sign).expect("signs");
        der(SEQUENCE, &[&to_sign, &algorithm, &der(BIT_STRING, &[&[0], signature.as_ref()])])
    }

    fn certify(&self, subject: &str, public: &[u8], until: &str) -> String {
        let names = der(SEQUENCE, &[&der(0x87, &[&[127, 0, 0, 1]]), &der(0x82, &[b"localhost"])]);
        pem("CERTIFICATE", &self.sign(subject, public, SUBJECT_ALT_NAME, &names, until))
    }

    /// For 127.0.0.1 and localhost, as PKCS #8.
    pub fn issue(&self, subject: &str) -> Pair {
        let key = Key::new();
        let certificate = self.certify(subject, &key.public(), "21200101000000Z");
        Pair { certificate, key: pem("PRIVATE KEY", &key.pkcs8) }
    }

    pub fn issue_expired(&self, subject: &str) -> Pair {
        let key = Key::new();
        let certificate = self.certify(subject, &key.public(), "20210101000000Z");
        Pair { certificate, key: pem("PRIVATE KEY", &key.pkcs8) }
    }

    /// As SEC 1, which is what PKCS #8 wraps.
    pub fn issue_sec1(&self, subject: &str) -> Pair {
        let key = Key::new();
        let inner = key.pkcs8.windows(5).position(|window| window == [0x30, 0x6b, 2, 1, 1]).expect("SEC 1");
        let certificate = self.certify(subject, &key.public(), "21200101000000Z");
        Pair { certificate, key: pem("EC PRIVATE KEY", &key.pkcs8[inner..]) }
    }

    /// RSA, as PKCS #1 and as PKCS #8.
    pub fn issue_rsa(&self, subject: &str) -> [Pair; 2] {
        let text: String = RSA_KEY.split_whitespace().collect();
        let pkcs1 = base64::engine::general_purpose::STANDARD.decode(text).expect("Base64");
        let pair = rsa::KeyPair::from_der(&pkcs1).expect("a key");
        let algorithm = der(SEQUENCE, &[&der(OID, &[RSA_ENCRYPTION]), &der(NULL, &[])]);
        let certificate =
            self.certify(subject, &public(&algorithm, pair.public().as_ref()), "21200101000000Z");
        let pkcs8 = der(SEQUENCE, &[&der(INTEGER, &[&[0]]), &algorithm, &der(OCTET_STRING, &[&pkcs1])]);
        [pem("RSA PRIVATE KEY", &pkcs1), pem("PRIVATE KEY", &pkcs8)]
            .map(|key| Pair { certificate: certificate.clone(), key })
    }
}

/// Made for these tests with `openssl genrsa -traditional 2048`; nobody trusts it.
const RSA_KEY: &str = "
MIIEowIBAAKCAQEAoTFK4HygomCyMD4SYy1e5Lo8lvpe9MScUMRakuQWi9h9e1ox
UGfIKpzjOZO9DIYDledUTeNi35YEZjiD39wo4+/65Dtt9JJp/v0zS0J6wjOWARFQ
tSE3tXh5yIUhsgkzlZLm5SjmKwaXSsSskBGBGQtonqDXGQ8vp6Iqw4i2YtgQloiZ
otc1ZGP1WNfKlzl+7wEmVKAcwet/0nhuxD4cJf8sP5hfZgPpbK9JZ+khWkyideE6
bj2Y2GAGjuBIvRSRh2J0OiG/Fc50OyYKLSRmj7EjWEcGaci4iDCt4M++tEAx1JpD
cKNY/7Q9fRtQIwev9/uWQbNkSZcjm0C3HHpJ+wIDAQABAoIBABPBBjOXolnz7rJh
0QANfd0bA7Te7wchFyUAwzbQNAEkYVBeH8ACT/IE8wXJ2LexrrvOszKuZJ4Q9O4Q
C/1BrlMsxDr3G4UG8m142zHkbkXha4cq95CTBxA6uPX9dsEqRoOUkq5PwlFQh/b2
Pk2Tj5Yho0sZW/LqvQTWp1X6KZvYO/k+la1VphvQ06aDeLHFGcY/iWne61v5BibB
3XW3eJuFpWuCkTK/c9C9jtIvdONHp1pIzVdA6MgZPqUgEN0iTTE+Jn1saN6dRfmr
mGRq39z4Aab/vonMpx5XffbzqKFOoafIbCtHPbOTS7YFai97lbzjXcRDd8jDI3si
EJXxrWUCgYEAzWeIGHS13iCil8MJpKbwWfYSuTPSQZtj9BMCuL2l+nr3Gs97Bmk9
Mgop8i11N4baPTsRNr5SGS9VMn2LLRqEIT8ZTJ1591CElzf6aJLkgPYrCNlfTbNT
npxAClsCbwToxg/fHJTR9Kik/41XTDuVWvR/egFKeXlE6iu471zjuqUCgYEAyOXV
C9Y51palosYbb+10loOfkEnlStutCtKRa0LzaORRXYiH6dCoOfPbTeW0odiHjk1P
jmMkaNJuNI5SUbxQQ8zTLghEUpVUK//KG/fja4Z/uYiI2I3PtQXqB+3aM68sfLp7
HhIii4keV2DWIRq5W3woh87VYnaY0ZBgJz588B8CgYEAojC/KTh3Jxez64vpQGdF
YHPK4wzFWGK/8UlVm9S8i+Wu2y+74BsXZDzcVEuKxDaqezD57bUolJRofL7fN9U5
QhtV+cZbOWsN124vP4XGAwLehlVGSM9yFssgUkz8xfclase7kBD/HGZSKyxLI3nk
/HYVdpwwV2znetTdabx6YbUCgYBN0MBh8lu64+VKlGPCSf7T4i3nLMhU45w2SfOr
0WYJJg7iJOVIStsuf2dd1/DMk9uF4ipDo+FRfNjVIJ+AK2oHqQnPlcIpHtBYrp5x
kOYVGybUDa+7+coPezf4VEglpt+bfHv93NZmp/kJrWejsP9FEWV9nT8IAZoV6k9k
RA8OzwKBgEahFvlHvl58gF3PB5FlTPO40fEJ5dR7EMBm2R46te9Yc2L4V5UGnT0a
T2Z8p7AujEhXRzjwSQNtLVPIl7JtQWWxw9uqzanCvbYrpy+YLYltF5w5PY1KWi8x
N8dEIsJkoufA/KjGDfgbbuRPapT0Nej1MSZrvUxDc8mM+GfmmVX4";
