//! NVIDIA's run-time compiler: CUDA C++ to machine code for one architecture. Loaded when it is wanted, from a folder or from where
//! the system's loader looks; needs neither a GPU nor CUDA's headers.
//!
//! Called through its C interface: the safe wrappers that exist take no headers from memory and give no cubin.

use super::compile::{Cache, Image, Job, Key, Source, headers_of};
use super::cubin::Cubin;
use super::error::{CudaError, Result};
use libloading::{Library, Symbol};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// Nothing is contracted and nothing is approximate unless a kernel says so: bits may not depend on what a compiler fuses.
const OPTIONS: [&str; 4] = ["--std=c++17", "--fmad=false", "-default-device", "--ptxas-options=-v"];

pub struct Nvrtc {
    /// `None` where only what was compiled ahead of time is to be had.
    library: Option<Library>,
    version: (i32, i32),
    cache: Cache,
}

/// In the cache: the version that compiled what is there.
const VERSION_FILE: &str = "nvrtc.version";

fn parse_version(text: &str) -> Option<(i32, i32)> {
    let (major, minor) = text.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

type Program = *mut c_void;
type Text = *const c_char;

impl Nvrtc {
    /// From `folder` if one is given.
    pub fn load(folder: Option<&Path>, cache: Cache) -> Result<Self> {
        let candidates: Vec<PathBuf> = match folder {
            Some(folder) => NAMES.iter().map(|name| folder.join(name)).collect(),
            None => NAMES.iter().map(PathBuf::from).collect(),
        };
        if let Some(folder) = folder {
            load_builtins(folder);
        }
        let mut failure = String::new();
        // In the order of preference.
        for path in &candidates {
            // SAFETY: NVIDIA's library, whose initialisers set up its own state only.
            match unsafe { Library::new(path) } {
                Ok(library) => return Self::with(library, cache),
                Err(error) => failure = error.to_string(),
            }
        }
        let version = std::fs::read_to_string(cache.folder().join(VERSION_FILE)).ok();
        match version.as_deref().and_then(parse_version) {
            Some(version) => Ok(Self { library: None, version, cache }),
            None => Err(CudaError::NoCompiler(format!("libnvrtc was not found: {failure}"))),
        }
    }

    fn with(library: Library, cache: Cache) -> Result<Self> {
        let mut nvrtc = Self { library: Some(library), version: (0, 0), cache };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: int, int.
        let version =
            unsafe { nvrtc.symbol::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>("nvrtcVersion") }?;
        // SAFETY: writes two ints.
        nvrtc.check("nvrtcVersion", unsafe { version(&raw mut major, &raw mut minor) })?;
        nvrtc.version = (major, minor);
        Ok(nvrtc)
    }

    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// The job for an architecture such as `sm_90a`, from the cache if it is there.
    pub fn compile(&self, job: &Job, arch: &str) -> Result<Image> {
        let options = OPTIONS.join(" ");
        let version = format!("nvrtc {}.{}", self.version.0, self.version.1);
        let key = Key::of(job, &headers_of(job.source), &[arch, &options, &version]);
        let io = |e: std::io::Error| CudaError::NoCompiler(format!("cannot use the cache of kernels: {e}"));
        let path = self.cache.get_or_make(&key, "cubin", |draft| {
            if self.library.is_none() {
                let missing = "libnvrtc was not found, and the cache of kernels has no";
                return Err(CudaError::NoCompiler(format!("{missing} {:?} for {arch}", job.expressions)));
            }
            let file = self.compile_fresh(job, arch)?.to_file();
            // For machines that have this cache and no compiler.
            let version = format!("{}.{}", self.version.0, self.version.1);
            std::fs::write(self.cache.folder().join(VERSION_FILE), version).map_err(io)?;
            std::fs::write(draft, file).map_err(io)
        })?;
        let file = std::fs::read(&path).map_err(io)?;
        Cubin::from_file(&file)
            .map(Image::Cubin)
            .ok_or_else(|| CudaError::NoCompiler(format!("{} is damaged: remove it", path.display())))
    }

    fn compile_fresh(&self, job: &Job, arch: &str) -> Result<Cubin> {
        let options: Vec<CString> = std::iter::once(format!("--gpu-architecture={arch}"))
            .chain(OPTIONS.map(str::to_string))
            .chain(job.defines.iter().map(|define| format!("-D{define}")))
            .map(text)
            .collect();
        let expressions: Vec<CString> = job.expressions.iter().cloned().map(text).collect();
        let program = OpenProgram::new(self, job.source)?;
        for expression in &expressions {
            program.add_expression(expression)?;
        }
        let compiled = program.compile(&options);
        let log = program.log()?;
        if compiled.is_err() {
            return Err(CudaError::Compile { source_name: job.source.name, target: arch.to_string(), log });
        }
        let symbols =
            expressions.iter().map(|expression| program.symbol_of(expression)).collect::<Result<_>>()?;
        Ok(Cubin { bytes: program.cubin()?, symbols, log })
    }

    /// # Safety
    /// `T` is the type that NVRTC's manual gives for this function.
    unsafe fn symbol<T>(&self, name: &'static str) -> Result<Symbol<'_, T>> {
        let library = self.library.as_ref().expect("a compilation has a compiler");
        // SAFETY: the caller's promise.
        unsafe { library.get(name.as_bytes()) }
            .map_err(|e| CudaError::Call { call: name, reason: e.to_string() })
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(CudaError::Call { call, reason: format!("NVRTC error {code}") }) }
    }
}

/// The compiler looks for its built-in functions by name only: what is loaded already is found.
fn load_builtins(folder: &Path) {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_builtins = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("libnvrtc-builtins.so")
    };
    for path in names.filter(is_builtins) {
        // SAFETY: NVIDIA's library. If it cannot be loaded, the compilation says what is missing.
        if let Ok(library) = unsafe { Library::new(path) } {
            std::mem::forget(library);
        }
    }
}

/// A program, destroyed when it goes.
struct OpenProgram<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl<'a> OpenProgram<'a> {
    fn new(nvrtc: &'a Nvrtc, source: Source) -> Result<Self> {
        type Create =
            unsafe extern "C" fn(*mut Program, Text, Text, c_int, *const Text, *const Text) -> c_int;
        let headers = headers_of(source);
        let count = headers.len() as c_int;
        let names: Vec<CString> = headers.iter().map(|header| text(header.name.to_string())).collect();
        let texts: Vec<CString> = headers.iter().map(|header| text(header.text.to_string())).collect();
        let (name, code) = (text(source.name.to_string()), text(source.text.to_string()));
        let [names, texts] =
            [&names, &texts].map(|list| list.iter().map(|t| t.as_ptr()).collect::<Vec<Text>>());
        let mut program = null_mut();
        // SAFETY: the type of the manual; `count` terminated texts in each list; NVRTC copies them.
        let code = unsafe {
            let create = nvrtc.symbol::<Create>("nvrtcCreateProgram")?;
            create(&raw mut program, code.as_ptr(), name.as_ptr(), count, texts.as_ptr(), names.as_ptr())
        };
        nvrtc.check("nvrtcCreateProgram", code)?;
        Ok(Self { nvrtc, program })
    }

    fn add_expression(&self, expression: &CStr) -> Result<()> {
        type Add = unsafe extern "C" fn(Program, Text) -> c_int;
        // SAFETY: the type of the manual; a live program and a terminated text.
        let code =
            unsafe { self.nvrtc.symbol::<Add>("nvrtcAddNameExpression")?(self.program, expression.as_ptr()) };
        self.nvrtc.check("nvrtcAddNameExpression", code)
    }

    fn compile(&self, options: &[CString]) -> Result<()> {
        type Compile = unsafe extern "C" fn(Program, c_int, *const Text) -> c_int;
        let options: Vec<Text> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the type of the manual; as many terminated texts as are announced.
        let code = unsafe {
            self.nvrtc.symbol::<Compile>("nvrtcCompileProgram")?(
                self.program,
                options.len() as c_int,
                options.as_ptr(),
            )
        };
        self.nvrtc.check("nvrtcCompileProgram", code)
    }

    fn log(&self) -> Result<String> {
        let bytes = self.output("nvrtcGetProgramLogSize", "nvrtcGetProgramLog")?;
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_string())
    }

    fn cubin(&self) -> Result<Vec<u8>> {
        self.output("nvrtcGetCUBINSize", "nvrtcGetCUBIN")
    }

    fn output(&self, size_call: &'static str, call: &'static str) -> Result<Vec<u8>> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        let mut size = 0;
        // SAFETY: the type of the manual; writes one size.
        let code = unsafe { self.nvrtc.symbol::<Size>(size_call)?(self.program, &raw mut size) };
        self.nvrtc.check(size_call, code)?;
        let mut bytes = vec![0u8; size];
        // SAFETY: the type of the manual; writes `size` bytes.
        let code = unsafe { self.nvrtc.symbol::<Get>(call)?(self.program, bytes.as_mut_ptr().cast()) };
        self.nvrtc.check(call, code)?;
        Ok(bytes)
    }

    fn symbol_of(&self, expression: &CStr) -> Result<String> {
        type Lowered = unsafe extern "C" fn(Program, Text, *mut Text) -> c_int;
        let mut name: Text = std::ptr::null();
        // SAFETY: the type of the manual; the name lives as long as the program.
        let code = unsafe {
            self.nvrtc.symbol::<Lowered>("nvrtcGetLoweredName")?(
                self.program,
                expression.as_ptr(),
                &raw mut name,
            )
        };
        self.nvrtc.check("nvrtcGetLoweredName", code)?;
        // SAFETY: a terminated text, after success.
        Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    }
}

impl Drop for OpenProgram<'_> {
    fn drop(&mut self) {
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        // SAFETY: the type of the manual; the program is not used again. A failure would leak it, no more.
        unsafe {
            if let Ok(destroy) = self.nvrtc.symbol::<Destroy>("nvrtcDestroyProgram") {
                destroy(&raw mut self.program);
            }
        }
    }
}

fn text(text: String) -> CString {
    CString::new(text.replace('\0', " ")).expect("no zero byte is left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error() {
        let folder = Path::new("/nowhere");
        let found = Nvrtc::load(Some(folder), Cache::new("unused"));
        assert!(matches!(found, Err(CudaError::NoCompiler(_))));
    }
}
