//! How much memory a model may take: what was asked for, and what there is.

use crate::bytes::Bytes;
use crate::{LoadError, MemoryLimit};
use kernels::Device;
use std::path::Path;

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

/// Memory of the machine, or less where control groups limit this process.
pub(crate) fn machine_memory() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| of_meminfo(&text, "MemTotal:"))?;
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    Some(limit_of_groups(&groups, read).map_or(machine, |group| group.min(machine)))
}

/// The least limit of the groups that this process is in, and of those that they are in. `groups` is `/proc/self/cgroup`: a line
/// `0::/a/b` for the tree of version 2, and one such as `4:memory:/a/b` where version 1 limits memory. In a container the path may be that
/// of the machine outside, while the group itself is what is mounted: so the root counts as well.
fn limit_of_groups(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let limits_of = |line: &str| {
        let (mount, file, path) = match line.split_once(':')?.1.split_once(':')? {
            ("", path) => ("/sys/fs/cgroup", "memory.max", path),
            (controllers, path) if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", path)
            }
            _ => return None,
        };
        let path = Path::new(path.trim_start_matches('/'));
        // "max", where there is none, is no number.
        let limit = |group: &Path| read(&Path::new(mount).join(group).join(file))?.trim().parse::<u64>().ok();
        path.ancestors().filter_map(limit).min()
    };
    groups.lines().filter_map(limits_of).min()
}

/// Whether `bytes` of addresses are to be had. A limit (`ulimit -v`) or a system that promises no more than it has would otherwise end the
/// process where the memory is taken, in the middle of loading.
pub(crate) fn check_addresses(bytes: u64) -> Result<(), LoadError> {
    let wanted = usize::try_from(bytes).ok();
    // Nothing is written to it: no page is taken.
    match wanted.map(|wanted| Vec::<u8>::new().try_reserve_exact(wanted)) {
        Some(Ok(())) => Ok(()),
        _ => Err(LoadError::Refused { bytes }),
    }
}

/// Memory of the host that could be taken now, as far as the system tells.
pub(crate) fn available_on_host() -> Option<u64> {
    let read = |path| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| of_meminfo(&text, "MemAvailable:"))?;
    let bytes = |path| read(path)?.trim().parse::<u64>().ok();
    let group = bytes("/sys/fs/cgroup/memory.max").zip(bytes("/sys/fs/cgroup/memory.current"));
    Some(group.map_or(machine, |(max, current)| max.saturating_sub(current).min(machine)))
}

/// Whether so many bytes of the host's memory, which is not that of the device, can be taken at once.
pub(crate) fn check_kv_offload(bytes: u64, available: Option<u64>) -> Result<(), LoadError> {
    match available {
        Some(available) if bytes > available => {
            let message = format!(
                "{} are wanted of the host's memory, {} are available",
                Bytes(bytes),
                Bytes(available)
            );
            Err(LoadError::Option { option: "kv_offloading_size", message })
        }
        _ => Ok(()),
    }
}

fn of_meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
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
    fn groups() {
        let check = |groups: &str, files: &[(&str, &str)], expected: Option<u64>| {
            let read = |path: &Path| {
                let found = files.iter().find(|(name, _)| Path::new(name) == path)?;
                Some(found.1.to_string())
            };
            assert_eq!(limit_of_groups(groups, read), expected, "{groups}");
        };
        check("", &[], None);
        check("0::/\n", &[("/sys/fs/cgroup/memory.max", "max\n")], None);
        // A container's own group is what it sees as the root.
        check("0::/\n", &[("/sys/fs/cgroup/memory.max", "4096\n")], Some(4096));
        check("0::/docker/x\n", &[("/sys/fs/cgroup/memory.max", "4096\n")], Some(4096));
        // A unit of systemd, in a slice with a limit of its own.
        let unit = [
            ("/sys/fs/cgroup/system.slice/memory.max", "8192\n"),
            ("/sys/fs/cgroup/system.slice/perilune.service/memory.max", "max\n"),
        ];
        check("0::/system.slice/perilune.service\n", &unit, Some(8192));
        let unit = [unit[0], ("/sys/fs/cgroup/system.slice/perilune.service/memory.max", "4096\n")];
        check("0::/system.slice/perilune.service\n", &unit, Some(4096));
        let first = [
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "4096\n"),
        ];
        check("5:cpu,cpuacct:/a\n4:memory:/a/b\n0::/\n", &first, Some(4096));
        check("4:cpu,memory:/a\n", &first, Some(4096));
        check("4:memory:/\n", &first, Some(9223372036854771712));
        check("nonsense\n4:memory\n", &first, None);
    }

    #[test]
    fn addresses() {
        check_addresses(0).unwrap();
        check_addresses(1 << 20).unwrap();
        let error = check_addresses(u64::MAX).unwrap_err().to_string();
        assert!(error.contains("ulimit -v"), "{error}");
    }

    #[test]
    fn meminfo() {
        let total = |text| of_meminfo(text, "MemTotal:");
        assert_eq!(total("MemTotal:       24563 kB\nMemFree: 1 kB\n"), Some(24563 * 1024));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert_eq!(total("MemTotal: many kB\n"), None);
    }

    #[test]
    fn what_is_kept_on_the_host_has_to_be_there() {
        assert!(check_kv_offload(5, Some(5)).is_ok() && check_kv_offload(5, None).is_ok());
        let error = check_kv_offload(3 << 30, Some(1 << 30)).unwrap_err().to_string();
        assert_eq!(
            error,
            "kv_offloading_size: 3.00 GiB are wanted of the host's memory, 1.00 GiB are available"
        );
    }
}
