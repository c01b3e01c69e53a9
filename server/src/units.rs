//! Numbers as people type them.

use models::MemoryLimit;

/// `4096`, `32k` (32,000) or `32K` (32,768), as in vLLM; also `m`, `M`, `g`, `G`.
pub fn parse_count(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let factor = match text.chars().last() {
        Some('k') => 1_000,
        Some('m') => 1_000_000,
        Some('g') => 1_000_000_000,
        Some('K') => 1 << 10,
        Some('M') => 1 << 20,
        Some('G') => 1 << 30,
        _ => return positive(text.parse::<usize>().map_err(|_| format!("`{text}` is not a number"))?, text),
    };
    let number: f64 = text[..text.len() - 1].parse().map_err(|_| format!("`{text}` is not a number"))?;
    let value = number * f64::from(factor);
    if !(value.is_finite() && (0.0..9e15).contains(&value)) || value.fract() != 0.0 {
        return Err(format!("`{text}` is not a whole number"));
    }
    positive(value as usize, text)
}

fn positive(value: usize, text: &str) -> Result<usize, String> {
    if value == 0 { Err(format!("`{text}` must be at least 1")) } else { Ok(value) }
}

/// Numbers of CPUs, each once, in this order: numbers and ranges such as `0-3,8`.
pub fn parse_cpus(list: &str) -> Result<Vec<usize>, String> {
    let number = |text: &str| {
        let text = text.trim();
        match text.parse::<usize>() {
            Ok(cpu) if cpu < CPUS_MAX => Ok(cpu),
            _ => Err(format!("`{text}` is not the number of a CPU, 0 to {}", CPUS_MAX - 1)),
        }
    };
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if last < first {
            return Err(format!("`{part}` ends before it begins"));
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(format!("CPU {cpu} is named twice"));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

/// What Linux's `cpu_set_t` has room for.
const CPUS_MAX: usize = 1024;

/// The same without shares.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    match parse_memory(text) {
        Ok(MemoryLimit::Bytes(bytes)) => Ok(bytes),
        _ => Err(format!("`{text}` is not a number of bytes, such as 200MiB")),
    }
}

/// `8GiB`, `8G` (binary), `500MB` (decimal), `1000000`, or a share such as `0.7`.
pub fn parse_memory(text: &str) -> Result<MemoryLimit, String> {
    let text = text.trim();
    let wrong = || format!("`{text}` is neither bytes, such as 8GiB, nor a share between 0 and 1");
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..at].trim(), text[at..].to_ascii_lowercase());
    let value: f64 = number.parse().map_err(|_| wrong())?;
    let factor: u64 = match unit.as_str() {
        "" if number.contains('.') => {
            return if value > 0.0 && value <= 1.0 { Ok(MemoryLimit::Fraction(value)) } else { Err(wrong()) };
        }
        "" | "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    let bytes = value * factor as f64;
    if !(1.0..9e15).contains(&bytes) {
        return Err(wrong());
    }
    Ok(MemoryLimit::Bytes(bytes as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_cpus("3"), Ok(vec![3]));
        assert_eq!(parse_cpus("8, 0-2,5-5"), Ok(vec![8, 0, 1, 2, 5]));
        for (list, reason) in [
            ("", "``"),
            ("0,", "``"),
            ("a", "`a`"),
            ("-1", "``"),
            ("3-1", "`3-1` ends"),
            ("1024", "0 to 1023"),
            ("0-2,1", "CPU 1 is named twice"),
            ("0-99999999999999999999", "0 to 1023"),
        ] {
            let message = parse_cpus(list).expect_err(list);
            assert!(message.contains(reason), "{list}: {message}");
        }
    }

    #[test]
    fn counts() {
        for (text, value) in
            [("1", 1), ("32k", 32_000), ("32K", 32_768), ("1.5k", 1_500), ("64M", 64 << 20), (" 7 ", 7)]
        {
            assert_eq!(parse_count(text), Ok(value), "{text}");
        }
        for text in ["", "0", "k", "-1", "1.0001K", "1x", "1e400k", "nank"] {
            assert!(parse_count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory() {
        use MemoryLimit::{Bytes, Fraction};
        for (text, value) in [
            ("0.7", Fraction(0.7)),
            ("1.0", Fraction(1.0)),
            ("8GiB", Bytes(8 << 30)),
            ("8g", Bytes(8 << 30)),
            ("1.5 GB", Bytes(1_500_000_000)),
            ("1000000", Bytes(1_000_000)),
        ] {
            assert_eq!(parse_memory(text), Ok(value), "{text}");
        }
        assert_eq!(parse_bytes("200MiB"), Ok(200 << 20));
        assert!(parse_bytes("0.5").is_err() && parse_bytes("many").is_err());
        for text in ["", "0.0", "1.5", "-1G", "8 apples", "0", "infG"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }
}
