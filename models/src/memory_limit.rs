//! How much memory a model may take: what was asked for, and what there is.

use crate::{LoadError, MemoryLimit};
use kernels::Device;

/// The limit in bytes; a fraction is of `total`, which is asked for only then.
pub(crate) fn resolve(limit: MemoryLimit, total: impl FnOnce() -> Option<u64>) -> Result<u64, LoadError> {
    let fail = |message: String| Err(LoadError::Option { option: "memory", message });
    match limit {
        MemoryLimit::Bytes(bytes) => Ok(bytes),
        MemoryLimit::Fraction(x) if !(x > 0.0 && x <= 1.0) => {
            fail(format!("{x} is not a fraction in (0, 1]"))
        }
        MemoryLimit::Fraction(x) => match total() {
            Some(total) => Ok((total as f64 * x) as u64),
            None => fail(
                "it is not known how much memory there is to take a share of: give a number of bytes".into(),
            ),
        },
    }
}

/// Memory that a fraction is of: what is free on a GPU, or all that the machine has.
pub(crate) fn of_device(device: &Device) -> Option<u64> {
    match device.memory() {
        None => machine_memory(),
        // A GPU on paper does not know.
        Some([total, free]) => (total > 0).then_some(free),
    }
}

/// Memory of the machine, or less where a control group limits this process.
pub(crate) fn machine_memory() -> Option<u64> {
    let read = |path| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| total_of_meminfo(&text))?;
    let group = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    Some(group.map_or(machine, |group| group.min(machine)))
}

fn total_of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let none = || None;
        assert_eq!(resolve(MemoryLimit::Bytes(7), none).unwrap(), 7);
        assert_eq!(resolve(MemoryLimit::Fraction(0.5), || Some(1001)).unwrap(), 500);
        for bad in [0.0, -1.0, 1.01, f64::NAN] {
            let error = resolve(MemoryLimit::Fraction(bad), || Some(1)).unwrap_err();
            assert!(error.to_string().starts_with("memory: "), "{error}");
        }
        let error = resolve(MemoryLimit::Fraction(0.9), none).unwrap_err();
        assert_eq!(
            error.to_string(),
            "memory: it is not known how much memory there is to take a share of: give a number of bytes"
        );
    }

    #[test]
    fn meminfo() {
        assert_eq!(total_of_meminfo("MemTotal:       24563 kB\nMemFree: 1 kB\n"), Some(24563 * 1024));
        assert_eq!(total_of_meminfo("MemFree: 1 kB\n"), None);
        assert_eq!(total_of_meminfo("MemTotal: many kB\n"), None);
    }
}
