//! Compiling kernels before anybody waits for them: into a folder for machines that have no compiler, and those of a model when it is
//! loaded. Both make the files that `Cuda::function` looks for: one for each instance.

use super::compile::{Cache, Job};
use super::error::{CudaError, Result};
use super::launch::{Instance, Kernel};
use super::nvrtc::Nvrtc;
use super::{Cuda, catalogue, launch};
use crate::WeightType;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What [`build`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub instances: usize,
    pub folder: PathBuf,
    /// NVRTC's.
    pub version: (i32, i32),
}

/// Compiles every instance that an architecture such as `sm_90a` can have into `folder`; NVRTC is looked for in `nvrtc`, or where
/// the system's loader looks. What is there already is left. `threads` at a time; `done` is called after each.
pub fn build(
    nvrtc: Option<&Path>,
    folder: &Path,
    arch: &str,
    threads: usize,
    done: &(dyn Fn(usize, usize) + Sync),
) -> Result<Built> {
    let number = arch_number(arch).ok_or_else(|| CudaError::UnknownArch(arch.to_string()))?;
    let cache = Cache::new(folder);
    let nvrtc = Nvrtc::load(nvrtc, cache.clone())?;
    let wanted = instances(|_, instance| instance.runs_on(number));
    let finished = AtomicUsize::new(0);
    in_parallel(&wanted, threads, |kernel, expression| {
        nvrtc.compile(&job(kernel, expression), arch)?;
        done(finished.fetch_add(1, Ordering::Relaxed) + 1, wanted.len());
        Ok(())
    })?;
    Ok(Built { instances: wanted.len(), folder: cache.folder().to_path_buf(), version: nvrtc.version() })
}

/// 80 of `sm_80`, 90 of `sm_90a`, 100 of `sm_100`.
fn arch_number(arch: &str) -> Option<u32> {
    let digits = arch.strip_prefix("sm_")?;
    let digits = digits.strip_suffix('a').unwrap_or(digits);
    digits.parse().ok().filter(|&number| number >= 80)
}

fn instances(is_wanted: impl Fn(&Kernel, &Instance) -> bool) -> Vec<(&'static Kernel, &'static str)> {
    let of = |kernel: &&'static Kernel| {
        let kernel = *kernel;
        kernel.instances.iter().map(move |instance| (kernel, instance))
    };
    let wanted =
        catalogue::KERNELS.iter().flat_map(of).filter(|(kernel, instance)| is_wanted(kernel, instance));
    wanted.map(|(kernel, instance)| (kernel, instance.expression)).collect()
}

fn job(kernel: &Kernel, expression: &str) -> Job {
    Job { source: kernel.source, expressions: vec![expression.to_string()], defines: Vec::new() }
}

/// Calls `work` for each, on several threads; the first failure ends it.
fn in_parallel(
    wanted: &[(&Kernel, &str)],
    threads: usize,
    work: impl Fn(&Kernel, &str) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let one_after_another = || {
        while let Some(&(kernel, expression)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = work(kernel, expression) {
                next.store(wanted.len(), Ordering::Relaxed);
                failure.lock().expect("no holder panics").get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, wanted.len().max(1)) {
            scope.spawn(one_after_another);
        }
    });
    failure.into_inner().expect("no holder panics").map_or(Ok(()), Err)
}

impl Cuda {
    /// Compiles and loads many instances, several at a time, so that nothing is compiled while serving.
    pub fn prepare(&self, wanted: &[(&Kernel, &str)]) -> Result<()> {
        in_parallel(wanted, self.host.pool.num_workers(), |kernel, expression| {
            // The result is in the cache; loading it below costs little.
            self.driver.compile(&job(kernel, expression)).map(|_| ())
        })?;
        wanted.iter().try_for_each(|&(kernel, expression)| self.function(kernel, expression).map(|_| ()))
    }

    /// Everything that a model with weights of these types may launch, beside what all have. Where whole sources are compiled at once it is left to the
    /// first launch: an emulated model uses a few of them.
    pub(crate) fn prepare_for(&self, stored_as: &[WeightType]) -> Result<()> {
        if self.driver.compiles_whole_sources() {
            return Ok(());
        }
        let others: Vec<&str> = WeightType::ON_GPU
            .iter()
            .filter(|t| **t != WeightType::F32 && !stored_as.contains(t))
            .map(|t| t.cpp())
            .collect();
        let arch = self.arch_number();
        self.prepare(&instances(|kernel, instance| {
            let uses = |name: &&str| launch::names_type(instance.expression, name);
            instance.runs_on(arch)
                && (!is_for_wgmma(instance) || self.uses_wgmma())
                && !others.iter().any(uses)
                && !Self::is_for_measuring(kernel)
        }))
    }
}

/// Products, and what packs rows for them.
fn is_for_wgmma(instance: &Instance) -> bool {
    ["_wgmma", "moe_pack"].iter().any(|name| instance.expression.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_numbers() {
        for (arch, number) in [("sm_80", Some(80)), ("sm_90a", Some(90)), ("sm_100a", Some(100))] {
            assert_eq!(arch_number(arch), number, "{arch}");
        }
        for wrong in ["", "90", "sm_", "sm_70", "sm_9x", "compute_90"] {
            assert_eq!(arch_number(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_instance_is_of_the_types_that_its_arguments_name() {
        use launch::names_type;
        assert!(names_type("linear_few<float, bf16, 1>", "bf16"));
        assert!(!names_type("linear_few<float, bf16, 1>", "f16"));
        assert!(names_type("move_rows<f16, float, 4>", "f16"));
        assert!(!names_type("copy_slice", "f16"));
    }

    #[test]
    fn a_failure_ends_the_work() {
        let wanted: Vec<_> = instances(|_, _| true);
        let seen = AtomicUsize::new(0);
        let failed = in_parallel(&wanted, 1, |_, _| match seen.fetch_add(1, Ordering::Relaxed) {
            2 => Err(CudaError::NoDriver),
            _ => Ok(()),
        });
        assert_eq!((failed, seen.into_inner()), (Err(CudaError::NoDriver), 3));
        assert_eq!(in_parallel(&[], 4, |_, _| Ok(())), Ok(()));
    }
}
