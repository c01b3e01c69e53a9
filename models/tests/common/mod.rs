//! The fixtures of `tests/fixtures`, and options that load them.
#![allow(dead_code, unused_macros, reason = "every test file uses its part")]

pub mod adapters;
pub mod feed;
pub mod formula;
pub mod late;
pub mod made;
pub mod qwen3_vl;
pub mod written;

use kernels::cuda::compile::Cache;
use kernels::cuda::driver::Driver;
use kernels::cuda::emulated::{Emulator, EmulatorOptions};
use kernels::cuda::nvidia::{Nvidia, NvidiaOptions};
use kernels::{CpuOptions, Device};
use models::{
    ActivationsChoice, DTypeChoice, DeviceChoice, ImageProcessor, KernelOptions, LoadOptions, Loaded, Matmul,
    MemoryLimit, ModelFiles, ModelInfo,
};
use safetensors::SafeTensors;
use scheduler::{ImageInput, ImageSpan};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

macro_rules! families {
    ($($name:ident),* $(,)?) => {
        /// Every architecture that is served, as a tiny checkpoint of that name.
        pub const FAMILIES: &[&str] = &[$(stringify!($name)),*];

        /// A test of each family's name that passes it to a function.
        macro_rules! test_families {
            ($check:expr) => {
                $(#[test]
                fn $name() {
                    $check(stringify!($name));
                })*
            };
        }
    };
}

families!(
    llama,
    llama1,
    llama31,
    qwen2,
    qwen3,
    qwen3_moe,
    qwen2_moe,
    mistral,
    mixtral,
    seed_oss,
    chameleon,
    moonlight,
    deepseek_v3,
    deepseek_v2_lite,
    deepseek_v2,
    kimi_vl,
    qwen2_5_vl,
    glm,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    solar_open,
    minimax_m2,
    olmoe,
    ernie4_5,
    ernie4_5_moe,
    dots1,
    qwen3_vl,
    qwen3_vl_moe,
);

/// Beside this file, or where the environment says: a test may run on another machine than it was built on. One whose weights are a formula is
/// written elsewhere when it is first asked for.
pub fn fixture(name: &str) -> PathBuf {
    match name {
        FORMULA => whole_fixture(name, &|| {
            let mut files = entries(&stored_fixture(FORMULA), "");
            let config = files.iter().find(|(name, _)| name == "config.json").unwrap();
            let config = serde_json::from_slice(&config.1).unwrap();
            files.push((
                "model.safetensors".into(),
                formula::joined(formula::NO_TENSORS, formula::qwen_vl(&config)),
            ));
            files
        }),
        _ if written::is_one(name) => written::folder(name),
        _ if qwen3_vl::is_one(name) => whole_fixture(name, &|| qwen3_vl::files(name)),
        _ => stored_fixture(name),
    }
}

fn stored_fixture(name: &str) -> PathBuf {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = std::env::var_os("PERILUNE_TEST_FIXTURES").map_or_else(here, PathBuf::from).join(name);
    if made::FAMILIES.contains(&name) { made::with_weights(&folder, name) } else { folder }
}

/// A family whose weights are a formula, and whose pictures are those of another.
const FORMULA: &str = "qwen2_5_vl";

/// Where tests write: on another machine than they were built on, what this one has for that.
pub fn scratch() -> PathBuf {
    match std::env::var_os("PERILUNE_TEST_FIXTURES") {
        None => PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
        Some(_) => std::env::temp_dir().join("perilune-tests"),
    }
}

/// Files of a folder with their content.
fn entries(folder: &Path, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let read = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (format!("{prefix}{name}"), std::fs::read(entry.path()).unwrap())
    };
    std::fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap())).collect()
}

/// Written once, under a name that says what is in it.
fn whole_fixture(name: &str, files: &dyn Fn() -> Vec<(String, Vec<u8>)>) -> PathBuf {
    static FOLDERS: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut folders = FOLDERS.lock().unwrap();
    folders.entry(name.to_string()).or_insert_with(|| write_whole_fixture(name, files())).clone()
}

fn write_whole_fixture(name: &str, mut files: Vec<(String, Vec<u8>)>) -> PathBuf {
    files.extend(entries(&stored_fixture("kimi_vl").join("images"), "images/"));
    files.sort();
    let content: Vec<u8> = files.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes].concat()).collect();
    let home = scratch();
    let folder = home.join(format!("{name}-{:08x}", formula::fnv1a(&content)));
    if !folder.is_dir() {
        // Nobody sees half of it, whoever writes at the same time.
        let draft = home.join(format!("{name}-draft-{}", std::process::id()));
        std::fs::create_dir_all(draft.join("images")).unwrap();
        files.iter().for_each(|(name, bytes)| std::fs::write(draft.join(name), bytes).unwrap());
        if std::fs::rename(&draft, &folder).is_err() {
            assert!(folder.is_dir(), "{}", folder.display());
            std::fs::remove_dir_all(&draft).unwrap();
        }
    }
    folder
}

/// A fixture's picture, and the token that stands for a row of it.
pub type Picture = (u32, Arc<ImageInput>);

/// The small one, if the model sees pictures.
pub fn picture(
    family: &str,
    info: &ModelInfo,
    processor: Option<Arc<dyn ImageProcessor>>,
) -> Option<Picture> {
    processor.map(|processor| {
        let picture = image::open(fixture(family).join("images/dot.png")).unwrap().to_rgb8();
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let input = processor.process(&picture, width, height).unwrap().into_rows();
        (info.image_token_id.unwrap(), Arc::new(input))
    })
}

/// Puts a picture into a prompt, where both are there.
pub fn put_picture(prompt: &mut Vec<u32>, at: Option<usize>, picture: &Option<Picture>) -> Vec<ImageSpan> {
    let (Some(start), Some((token, image))) = (at, picture) else { return Vec::new() };
    prompt.splice(start..start, std::iter::repeat_n(*token, image.num_tokens));
    vec![ImageSpan { start, image: image.clone() }]
}

pub fn files(name: &str) -> ModelFiles {
    ModelFiles::Directory(fixture(name))
}

/// Exact arithmetic and a block size that divides nothing.
pub fn options() -> LoadOptions {
    LoadOptions {
        dtype: DTypeChoice::F32,
        activations: ActivationsChoice::F32,
        max_model_len: Some(300),
        max_num_seqs: 40,
        max_num_batched_tokens: 331,
        block_size: 5,
        memory: MemoryLimit::Bytes(256 << 20),
        threads: Some(2),
        ..LoadOptions::default()
    }
}

/// The GPU's code, run by the emulator: no more than a tiny model, whose kernels are kept between runs.
pub fn emulated() -> LoadOptions {
    let cache = concat!(env!("CARGO_TARGET_TMPDIR"), "/emulated");
    LoadOptions {
        device: DeviceChoice::CudaEmulated,
        kernels: KernelOptions { cache: Some(cache.into()), ..KernelOptions::default() },
        activations: ActivationsChoice::Auto,
        max_model_len: Some(100),
        max_num_seqs: 12,
        max_num_batched_tokens: 64,
        memory: MemoryLimit::Bytes(24 << 20),
        ..options()
    }
}

/// As `emulated`, or the first GPU where `PERILUNE_TEST_DEVICE` says so (tests/gpu/run).
pub fn on_gpu() -> LoadOptions {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    match folder("PERILUNE_TEST_DEVICE").is_some_and(|device| device == Path::new("cuda")) {
        false => emulated(),
        true => LoadOptions {
            device: DeviceChoice::Cuda(0),
            kernels: KernelOptions {
                cache: folder("PERILUNE_KERNEL_CACHE")
                    .or_else(|| Some(std::env::temp_dir().join("perilune-kernels"))),
                nvrtc: folder("PERILUNE_NVRTC_DIR"),
                matmul: Matmul::Auto,
            },
            ..emulated()
        },
    }
}

/// The device of `on_gpu`, with some memory and no model.
pub fn bare_gpu() -> Device {
    let LoadOptions { device, kernels: KernelOptions { cache, nvrtc, .. }, .. } = on_gpu();
    let cache = Cache::new(cache.expect("a folder for kernels"));
    let driver: Box<dyn Driver> = match device {
        DeviceChoice::CudaEmulated => Box::new(Emulator::new(EmulatorOptions::new("c++", cache)).unwrap()),
        _ => Box::new(Nvidia::new(NvidiaOptions { ordinal: 0, cache, nvrtc }).unwrap()),
    };
    Device::cuda(driver, 8 << 20, CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap()
}

pub fn load(name: &str, options: &LoadOptions) -> Loaded {
    models::load(&files(name), options, &mut |_| {}).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub struct Golden {
    pub images: Vec<Value>,
    pub cases: Vec<Case>,
    arrays: BTreeMap<String, Vec<f32>>,
}

pub struct Case {
    pub name: String,
    pub prompt: Vec<u32>,
    pub greedy: Vec<u32>,
    /// File and offset of each picture.
    pub images: Vec<(String, usize)>,
}

impl Golden {
    pub fn read(name: &str) -> Self {
        if written::is_one(name) {
            return written::golden(name);
        }
        let json: Value =
            serde_json::from_slice(&std::fs::read(fixture(name).join("golden.json")).unwrap()).unwrap();
        let bytes = std::fs::read(fixture(name).join("golden.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let widen = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let arrays = tensors.tensors().into_iter().map(|(name, view)| (name, widen(view.data()))).collect();
        let images = json["images"].as_array().cloned().unwrap_or_default();
        let cases = json["cases"].as_array().unwrap().iter().map(Case::read).collect();
        Self { images, cases, arrays }
    }

    /// An array that is of no case.
    pub fn named(&self, name: &str) -> &[f32] {
        &self.arrays[name]
    }

    pub fn array(&self, case: &Case, what: &str) -> Option<&[f32]> {
        self.arrays.get(&format!("{}.{what}", case.name)).map(Vec::as_slice)
    }
}

impl Case {
    fn read(json: &Value) -> Self {
        let ids = |key: &str| -> Vec<u32> {
            json[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let image = |image: &Value| {
            (image["file"].as_str().unwrap().to_string(), image["offset"].as_u64().unwrap() as usize)
        };
        Self {
            name: json["name"].as_str().unwrap().to_string(),
            prompt: ids("prompt_token_ids"),
            greedy: ids("greedy_token_ids"),
            images: json["images"].as_array().map_or(Vec::new(), |list| list.iter().map(image).collect()),
        }
    }
}
