//! Compiles kernels for the CPU: the same .cu source, wrapped into a library by the C++ compiler of the machine.

use super::super::catalogue;
use super::super::compile::{Cache, HEADERS, Image, Job, Key, Source, headers_of, unique};
use super::super::error::{CudaError, Result};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The emulator's own sources.
const RUNTIME: [Source; 5] = [
    Source { name: "runtime.cpp", text: include_str!("../../../emulator/runtime.cpp") },
    Source { name: "warpgroup.cpp", text: include_str!("../../../emulator/warpgroup.cpp") },
    Source { name: "cluster.cpp", text: include_str!("../../../emulator/cluster.cpp") },
    Source { name: "runtime.h", text: include_str!("../../../emulator/runtime.h") },
    Source { name: "fiber.h", text: include_str!("../../../emulator/fiber.h") },
];
const KERNEL_HEADERS: [Source; 6] = [
    Source { name: "api.h", text: include_str!("../../../emulator/api.h") },
    Source { name: "checked.h", text: include_str!("../../../emulator/checked.h") },
    Source { name: "cuda.h", text: include_str!("../../../emulator/cuda.h") },
    Source { name: "hopper.h", text: include_str!("../../../emulator/hopper.h") },
    Source { name: "launch.h", text: include_str!("../../../emulator/launch.h") },
    Source { name: "ptx.h", text: include_str!("../../../emulator/ptx.h") },
];

const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fno-exceptions",
    "-Wno-unknown-pragmas",
    "-Wno-attributes",
];

/// A C++ compiler and a cache.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    pub compiler: String,
    pub cache: Cache,
    /// See `EmulatorOptions`.
    pub edits: Vec<[&'static str; 2]>,
    version: String,
}

impl Builder {
    pub fn new(compiler: &str, cache: Cache, edits: Vec<[&'static str; 2]>) -> Result<Self> {
        let missing = |reason: String| CudaError::NoCompiler(format!("{compiler}: {reason}"));
        let output = Command::new(compiler).arg("--version").output().map_err(|e| missing(e.to_string()))?;
        if !output.status.success() {
            return Err(missing(format!("--version ended with {}", output.status)));
        }
        let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_string();
        Ok(Self { compiler: compiler.to_string(), cache, edits, version })
    }

    /// The library that kernels are linked against.
    pub fn runtime(&self) -> Result<PathBuf> {
        let job = Job { source: RUNTIME[0], expressions: Vec::new(), defines: Vec::new() };
        let headers: Vec<Source> = RUNTIME.iter().chain(&KERNEL_HEADERS).copied().collect();
        let unit = "#include \"runtime.cpp\"\n#include \"warpgroup.cpp\"\n#include \"cluster.cpp\"\n";
        self.build(&job, &headers, unit, &[])
    }

    pub fn kernels(&self, job: &Job) -> Result<Image> {
        let runtime = self.runtime()?;
        let texts: Vec<Source> = headers_of(job.source).into_iter().chain([job.source]).collect();
        let headers: Vec<Source> = KERNEL_HEADERS.into_iter().chain(self.edited(texts)?).collect();
        let name = runtime.file_name().and_then(|name| name.to_str()).expect("a file of the cache");
        let mut unit = format!("#include \"{}\"\n#include \"launch.h\"\n", job.source.name);
        for (i, expression) in job.expressions.iter().enumerate() {
            writeln!(unit, "EMU_KERNEL({i}, {expression})").expect("text grows");
        }
        let folder = self.cache.folder().to_str().expect("the cache's path is text");
        // The runtime is found beside the kernels.
        let link = ["-L", folder, &format!("-l:{name}"), "-Wl,-rpath,$ORIGIN"].map(str::to_string);
        let path = self.build(job, &headers, &unit, &link)?;
        Ok(Image::Library { path, expressions: job.expressions.clone() })
    }

    fn edited(&self, mut sources: Vec<Source>) -> Result<Vec<Source>> {
        for [from, to] in &self.edits {
            if let Some(source) = sources.iter_mut().find(|source| source.text.contains(from)) {
                // Tests only, some kilobytes for each.
                source.text = String::leak(source.text.replacen(from, to, 1));
            } else if !HEADERS.iter().any(|header| header.text.contains(from)) && !is_elsewhere(from) {
                return Err(CudaError::NoCompiler(format!("nothing to edit: {from:?}")));
            }
        }
        Ok(sources)
    }

    fn build(&self, job: &Job, headers: &[Source], unit: &str, link: &[String]) -> Result<PathBuf> {
        let flags = FLAGS.join(" ");
        let key = Key::of(
            job,
            headers,
            &[unit, &self.compiler, &self.version, &flags, link.get(2).map_or("", |name| name)],
        );
        self.cache.get_or_make(&key, "so", |draft| {
            let folder = self.cache.folder().join(unique("sources"));
            let built = self.compile_in(&folder, job, headers, unit, link, draft);
            // Left behind, it would only take room.
            let _ = std::fs::remove_dir_all(&folder);
            built
        })
    }

    fn compile_in(
        &self,
        folder: &Path,
        job: &Job,
        headers: &[Source],
        unit: &str,
        link: &[String],
        out: &Path,
    ) -> Result<()> {
        let failed = |log: String| CudaError::Compile {
            source_name: job.source.name,
            target: "the emulator".to_string(),
            log,
        };
        let write = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).map_err(|e| failed(e.to_string()))
        };
        std::fs::create_dir_all(folder).map_err(|e| failed(e.to_string()))?;
        for header in headers {
            write(header.name, header.text)?;
        }
        write("unit.cpp", unit)?;
        let out = std::path::absolute(out).map_err(|e| failed(e.to_string()))?;
        let mut command = Command::new(&self.compiler);
        command.current_dir(folder).args(FLAGS).args(job.defines.iter().map(|d| format!("-D{d}")));
        command.args(["unit.cpp", "-o"]).arg(&out).args(link);
        let output = command.output().map_err(|e| failed(e.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(())
    }
}

/// Whether some kernel has this text: an op may launch several.
fn is_elsewhere(text: &str) -> bool {
    catalogue::KERNELS.iter().any(|kernel| kernel.source.text.contains(text))
}
