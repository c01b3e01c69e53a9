//! Every instance of every kernel, compiled to machine code by NVIDIA's compiler, without a GPU: no spills, no stack frame, no more
//! registers or shared memory than its budget, and no instance that needs more than a block can have.
//!
//! The compiler comes from its Python wheel, installed once into the target folder, or from the folder that `NVRTC_DIR` names. `KERNELS=WORD` leaves
//! out instances that do not have the word in their name: a change to a header compiles for minutes.

use kernels::cuda::catalogue;
use kernels::cuda::compile::{Cache, Image, Job, Source};
use kernels::cuda::launch::Instance;
use kernels::cuda::nvrtc::Nvrtc;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const WHEEL: &str = "nvidia-cuda-nvrtc==13.0.88";
const ARCHS: [(&str, u32); 3] = [("sm_80", 80), ("sm_90a", 90), ("sm_100", 100)];

/// The kernels that show each named instruction: those that no other kernel uses must assemble as well.
const TEST_KERNELS: Source = Source { name: "ptx.cu", text: include_str!("cuda/ptx.cu") };
const TEST_INSTANCES: [Instance; 15] = [
    Instance::new("mma<bf16>", 64, 0),
    Instance::new("mma<f16>", 64, 0),
    Instance::new("load_matrices<1, false>", 64, 512),
    Instance::new("load_matrices<1, true>", 64, 512),
    Instance::new("load_matrices<2, false>", 64, 512),
    Instance::new("load_matrices<2, true>", 64, 512),
    Instance::new("load_matrices<4, false>", 64, 512),
    Instance::new("load_matrices<4, true>", 64, 512),
    Instance::new("copies", 64, 1024),
    Instance::new("conversions", 64, 0),
    Instance::new("packed", 64, 0),
    Instance::new("exchanges", 64, 0),
    Instance::new("blocks", 64, 384),
    Instance::new("atomics", 64, 0),
    Instance::new("random_words", 64, 0),
];

const HOPPER_KERNELS: Source = Source { name: "hopper.cu", text: include_str!("cuda/hopper.cu") };
const HOPPER_INSTANCES: [Instance; 13] = [
    hopper("multiply<bf16, 8, false>"),
    hopper("multiply<bf16, 16, false>"),
    hopper("multiply<bf16, 32, false>"),
    hopper("multiply<bf16, 64, true>"),
    hopper("multiply<bf16, 128, true>"),
    hopper("multiply<f16, 8, false>"),
    hopper("multiply<f16, 16, true>"),
    hopper("multiply<f16, 32, true>"),
    hopper("multiply<f16, 64, false>"),
    hopper("multiply<f16, 128, false>"),
    hopper("multiply<bf16, 192, false>"),
    hopper("multiply<f16, 192, false>"),
    hopper("pipeline"),
];

const CLUSTER_KERNELS: Source = Source { name: "clusters.cu", text: include_str!("cuda/clusters.cu") };
const CLUSTER_INSTANCES: [Instance; 5] =
    [hopper("ranks"), hopper("meeting"), hopper("ring"), hopper("multicast"), hopper("shared_pipeline")];

const fn hopper(expression: &'static str) -> Instance {
    Instance::hopper(expression, 168, 1024)
}

fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The folder of the compiler's library.
fn compiler() -> PathBuf {
    if let Some(folder) = std::env::var_os("NVRTC_DIR") {
        return folder.into();
    }
    let home = target().join(WHEEL.replace("==", "-"));
    let marker = home.join("complete");
    if !marker.exists() {
        let run = |command: &mut Command| {
            let output = command.output().expect("python3 with its venv module");
            let reason = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?} (or set NVRTC_DIR): {reason}");
        };
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home));
        let pip = home.join("bin/pip");
        run(Command::new(pip).args(["install", "--no-deps", "--disable-pip-version-check", WHEEL]));
        std::fs::write(&marker, WHEEL).expect("a writable target folder");
    }
    let libraries = std::fs::read_dir(home.join("lib")).expect("a virtual environment").flatten();
    let folder = libraries.map(|python| python.path().join("site-packages/nvidia/cu13/lib"));
    folder.into_iter().find(|folder| folder.exists()).expect("the wheel's library")
}

/// What the assembler reports of the one kernel of a log.
#[derive(Debug, Default, PartialEq, Eq)]
struct Usage {
    registers: u32,
    shared: u32,
    stack: u32,
    spills: u32,
    /// Products of a warpgroup that wait for one another because of how accumulators are used.
    is_serialized: bool,
}

impl Usage {
    fn parse(log: &str) -> Self {
        let before = |unit: &str| -> u32 {
            let numbers = log.match_indices(unit).map(|(at, _)| log[..at].split_whitespace().next_back());
            numbers
                .map(|number| {
                    number.and_then(|n| n.trim_start_matches(',').parse::<u32>().ok()).expect("a number")
                })
                .sum()
        };
        Self {
            registers: before(" registers"),
            shared: before(" bytes smem"),
            stack: before(" bytes stack frame") + before(" bytes cumulative stack"),
            spills: before(" bytes spill stores") + before(" bytes spill loads"),
            is_serialized: false,
        }
    }
}

/// The part of a log that is about one symbol.
fn section<'a>(log: &'a str, symbol: &str) -> &'a str {
    let sections = log.split("Compiling entry function ").skip(1);
    sections.into_iter().find(|section| section.starts_with(&format!("'{symbol}'"))).unwrap_or_default()
}

#[test]
fn reports_are_understood() {
    let log = "ptxas info : 8 bytes gmem\n\
               ptxas info : Compiling entry function 'other' for 'sm_80'\n\
               ptxas info : Used 9 registers\n\
               ptxas info : Compiling entry function 'it' for 'sm_80'\n\
               ptxas . 8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n\
               ptxas info : Used 39 registers, used 1 barriers, 32 bytes smem, 384 bytes cmem[0]";
    let expected = Usage { registers: 39, shared: 32, stack: 8, spills: 28, is_serialized: false };
    assert_eq!(Usage::parse(section(log, "it")), expected);
    assert_eq!(Usage::parse(section(log, "i")), Usage::default());
}

fn check(instance: &Instance, arch: &str, usage: &Usage) -> Result<(), String> {
    let Instance { expression, registers, shared, .. } = *instance;
    let what = format!("{expression} on {arch}: {usage:?}");
    match usage {
        Usage { stack: 1.., .. } => Err(format!("{what} has a stack frame")),
        Usage { spills: 1.., .. } => Err(format!("{what} spills")),
        Usage { is_serialized: true, .. } => Err(format!("{what} has products in series")),
        Usage { registers: 0, .. } => Err(format!("{what} is no report")),
        usage if usage.registers > registers => Err(format!("{what} exceeds {registers} registers")),
        usage if usage.shared > shared => Err(format!("{what} exceeds {shared} bytes of shared memory")),
        _ => Ok(()),
    }
}

/// Compiles some instances of one source together, and says what is wrong with them.
fn failures_of(nvrtc: &Nvrtc, source: Source, instances: &[&Instance], arch: &str) -> Vec<String> {
    let expressions = instances.iter().map(|instance| instance.expression.to_string()).collect();
    let job = Job { source, expressions, defines: Vec::new() };
    match nvrtc.compile(&job, arch) {
        Ok(Image::Cubin(cubin)) => {
            let in_series = |symbol: &str| {
                let mut lines = cubin.log.lines().filter(|line| line.contains("instructions are serialized"));
                lines.any(|line| line.contains(&format!("'{symbol}'")))
            };
            let reports = cubin.symbols.iter().map(|symbol| Usage {
                is_serialized: in_series(symbol),
                ..Usage::parse(section(&cubin.log, symbol))
            });
            let checks = instances.iter().zip(reports).map(|(instance, usage)| check(instance, arch, &usage));
            checks.filter_map(Result::err).collect()
        }
        Ok(Image::Library { .. }) => vec!["not a cubin".to_string()],
        Err(error) => vec![error.to_string()],
    }
}

#[test]
fn every_kernel_compiles_within_its_budget() {
    let nvrtc = Nvrtc::load(Some(&compiler()), Cache::new(target().join("cubin"))).expect("NVRTC");
    let ours = catalogue::KERNELS.iter().map(|kernel| (kernel.source, kernel.instances));
    let mut jobs = Vec::new();
    let only = std::env::var("KERNELS").ok();
    for (source, instances) in ours.chain([(TEST_KERNELS, TEST_INSTANCES.as_slice())]) {
        for (arch, number) in ARCHS {
            let is_wanted = |i: &&Instance| {
                i.runs_on(number) && only.as_ref().is_none_or(|word| i.expression.contains(word))
            };
            let here: Vec<&Instance> = instances.iter().filter(is_wanted).collect();
            // Few enough that the jobs of a large source are shared out.
            jobs.extend(here.chunks(8).map(|chunk| (source, chunk.to_vec(), arch)));
        }
    }
    assert!(!jobs.is_empty(), "no instance is called {only:?}");
    jobs.push((HOPPER_KERNELS, HOPPER_INSTANCES.iter().collect(), "sm_90a"));
    jobs.push((CLUSTER_KERNELS, CLUSTER_INSTANCES.iter().collect(), "sm_90a"));
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((source, instances, arch)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = failures_of(&nvrtc, *source, instances, arch);
                    failures.lock().expect("no holder panics").extend(found);
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no holder panics");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
