//! From an op to a launch: which instances of a kernel exist, what each may cost, and how a function is found.

use super::Cuda;
use super::compile::{Job, Source};
use super::driver::{Args, Clusters, Function, Grid};
use super::error::CudaError;
use std::sync::atomic::Ordering;

/// One file of kernels and every instance of them that an op may launch.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub source: Source,
    pub instances: &'static [Instance],
}

/// One instantiation, and its budget: a test compiles it and fails when it takes more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// As C++ names it, such as `rms_norm<float>`.
    pub expression: &'static str,
    /// Registers of one thread.
    pub registers: u32,
    /// Static shared memory of one block, in bytes.
    pub shared: u32,
    /// The first architecture that it compiles for, such as 80, and the last.
    pub archs: [u32; 2],
}

impl Instance {
    pub const fn new(expression: &'static str, registers: u32, shared: u32) -> Self {
        Self { expression, registers, shared, archs: [80, u32::MAX] }
    }

    /// With instructions of sm_90a, which no other architecture has.
    pub const fn hopper(expression: &'static str, registers: u32, shared: u32) -> Self {
        Self { expression, registers, shared, archs: [90, 90] }
    }

    /// Whether it compiles for an architecture, such as 80.
    pub fn runs_on(&self, arch: u32) -> bool {
        (self.archs[0]..=self.archs[1]).contains(&arch)
    }
}

impl Cuda {
    /// Launches an instance on the device's stream. What fails is kept for `synchronize`: ops do not return errors.
    ///
    /// # Safety
    /// The arguments are the kernel's parameters, and what their pointers reach is long enough for this grid.
    pub(crate) unsafe fn launch(&self, kernel: &Kernel, expression: &str, grid: Grid, args: Args) {
        // SAFETY: the caller's promise.
        unsafe { self.launch_clusters(kernel, expression, Clusters::from(grid), args) }
    }

    /// As `launch`, in clusters.
    ///
    /// # Safety
    /// As `launch`; the kernel expects clusters of these sizes.
    pub(crate) unsafe fn launch_clusters(
        &self,
        kernel: &Kernel,
        expression: &str,
        clusters: Clusters,
        args: Args,
    ) {
        if self.has_failed() {
            return;
        }
        self.launched.fetch_add(1, Ordering::Relaxed);
        let launched = self.function(kernel, expression).and_then(|function| {
            // SAFETY: the caller's promise.
            unsafe { self.driver.launch_clusters(self.stream(), function, &clusters, &args) }
        });
        self.note(launched);
    }

    pub(super) fn function(&self, kernel: &Kernel, expression: &str) -> Result<Function, CudaError> {
        let mut functions = self.functions.lock().expect("no compilation panics");
        let loaded = functions.entry(kernel.source.name).or_default();
        if let Some(&function) = loaded.get(expression) {
            return Ok(function);
        }
        let known = |instance: &Instance| instance.expression == expression;
        assert!(
            kernel.instances.iter().any(known),
            "{expression} is not an instance of {}",
            kernel.source.name
        );
        let expressions: Vec<String> = if self.driver.compiles_whole_sources() {
            let arch = self.arch_number();
            let here = kernel.instances.iter().filter(|instance| instance.runs_on(arch));
            here.map(|instance| instance.expression.to_string()).collect()
        } else {
            vec![expression.to_string()]
        };
        let job = Job { source: kernel.source, expressions, defines: Vec::new() };
        let image = self.driver.compile(&job)?;
        loaded.extend(job.expressions.into_iter().zip(self.driver.load(&image)?));
        Ok(loaded[expression])
    }

    /// 80, 90, 100: what `Instance::runs_on` is asked.
    pub(crate) fn arch_number(&self) -> u32 {
        let (major, minor) = self.driver.info().capability;
        10 * major + minor
    }
}

/// Blocks in one dimension, threads in one dimension.
pub(crate) fn grid(blocks: usize, threads: u32) -> Grid {
    let blocks = u32::try_from(blocks).expect("a grid has fewer than 2³² blocks");
    Grid { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared: 0 }
}

/// Whether a type is among the arguments of a template: `bf16` in `linear_few<float, bf16, 1>`.
pub(super) fn names_type(expression: &str, name: &str) -> bool {
    expression.split(|c: char| !c.is_alphanumeric() && c != '_').skip(1).any(|word| word == name)
}
