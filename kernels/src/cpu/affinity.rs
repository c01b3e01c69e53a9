//! Which processors a thread runs on, where the system lets us say so: on Linux.

/// Whether this thread may be pinned to this processor.
pub(crate) fn is_allowed(cpu: usize) -> bool {
    system::allowed().contains(&cpu)
}

/// From here on this thread runs on this processor alone, and so do threads that it starts. Where the processor is gone by now, the
/// thread stays where it was: answers do not depend on it.
pub(crate) fn pin(cpu: usize) {
    system::pin(cpu);
}

#[cfg(target_os = "linux")]
mod system {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    pub fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap_or_default();
        (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
    }

    pub fn pin(cpu: usize) {
        let mut set = CpuSet::new();
        set.set(cpu);
        let _ = sched_setaffinity(None, &set);
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub fn allowed() -> Vec<usize> {
        Vec::new()
    }

    pub fn pin(_cpu: usize) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::cpu::pool::Pool;
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::thread::ThreadId;

    #[test]
    fn each_worker_stays_on_its_processor() {
        let allowed = system::allowed();
        assert!(!allowed.is_empty());
        let cpus: Vec<usize> = allowed.iter().cycle().take(3).copied().collect();
        // The thread that makes the pool is pinned with it: not the test's own.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let pool = Pool::new(3, &cpus).expect("starts");
                let seen: Mutex<BTreeMap<usize, (ThreadId, Vec<usize>)>> = Mutex::default();
                // A worker that is slow to wake misses a region.
                while seen.lock().unwrap().len() < 3 {
                    pool.run(64, &|_, worker| {
                        let found = (std::thread::current().id(), system::allowed());
                        assert_eq!(
                            seen.lock().unwrap().entry(worker).or_insert_with(|| found.clone()),
                            &found
                        );
                        std::thread::yield_now();
                    });
                }
                let seen = seen.into_inner().unwrap();
                assert!(seen.iter().all(|(&worker, (_, on))| *on == [cpus[worker]]), "{seen:?}");
            });
        });
        assert_eq!(system::allowed(), allowed);
    }

    #[test]
    fn processors_that_are_not_there_are_known() {
        assert!(system::allowed().into_iter().all(is_allowed));
        assert!(!is_allowed(1 << 20));
    }
}
