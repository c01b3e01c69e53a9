//! Chameleon's pictures against the published code: the pixels that are left of them, the entries of the codebook that they become, and what the
//! decoder says after them.

mod common;

use common::formula::{encoder, fnv1a, joined, noise, smooth};
use common::{fixture, options};
use models::chameleon::PixelRule;
use models::{
    ImageError, ImageProcessor, LoadFormat, LoadOptions, Loaded, ModelFiles, ProcessedImage, Transparency,
};
use scheduler::{Batch, BatchItem, BlockId, Sample, SamplingParams, SequenceId};
use serde_json::{Value, json};
use std::sync::Arc;

const BEGIN: u32 = 103;
const END: u32 = 102;
const PLACEHOLDER: u32 = 105;
const SEPARATOR: u32 = 104;

fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture("chameleon").join(name)).unwrap()).unwrap()
}

/// The checkpoint with its encoder, and with changes of config.json and preprocessor_config.json.
fn files(change: impl FnOnce(&mut Value, &mut Value)) -> ModelFiles {
    let (mut config, pictures) = (read("config.json"), read("pictures.json"));
    config["vq_config"] = pictures["vq_config"].clone();
    let mut settings = pictures["preprocessor_config"].clone();
    change(&mut config, &mut settings);
    let weights = joined(&std::fs::read(fixture("chameleon").join("model.safetensors")).unwrap(), encoder());
    let leaked = |bytes: Vec<u8>| &*bytes.leak();
    let files = vec![
        ("config.json", leaked(config.to_string().into_bytes())),
        ("preprocessor_config.json", leaked(settings.to_string().into_bytes())),
        ("model.safetensors", leaked(weights)),
    ];
    ModelFiles::Embedded(files.leak())
}

fn whole() -> ModelFiles {
    files(|_, _| {})
}

fn load(files: &ModelFiles, options: &LoadOptions) -> Loaded {
    models::load(files, options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(files: &ModelFiles) -> String {
    models::load(files, &options(), &mut |_| {}).err().expect("refused").to_string()
}

fn number(json: &Value, key: &str) -> usize {
    json[key].as_u64().unwrap_or_else(|| panic!("{key} of {json}")) as usize
}

/// Pixels and size of a picture that the golden file describes.
fn drawn(picture: &Value) -> (Vec<u8>, usize, usize) {
    let [width, height, seed] = ["width", "height", "seed"].map(|key| number(picture, key));
    let rgb = match picture["formula"].as_str().unwrap() {
        "smooth" => smooth(width, height, seed),
        "noise" => noise(width, height, seed),
        other => panic!("{other}"),
    };
    (rgb, width, height)
}

fn pictures() -> Vec<Value> {
    let pictures = read("pictures.json")["pictures"].as_array().unwrap().clone();
    assert_eq!(pictures.len(), 3);
    pictures
}

/// A picture in a prompt, by the names of config.json.
fn expected(picture: &Value) -> Vec<u32> {
    let map = read("config.json")["vocabulary_map"].clone();
    let token = |code: &Value| {
        let letters = |digit: char| char::from(b'A' + digit as u8 - b'0');
        let name: String = code.as_u64().unwrap().to_string().chars().map(letters).collect();
        map[format!("IMGIMG{name}Z")].as_u64().unwrap() as u32
    };
    let codes = picture["codes"].as_array().unwrap().iter().map(token);
    std::iter::once(BEGIN).chain(codes).chain([END]).collect()
}

fn tokens(processor: &dyn ImageProcessor, picture: &Value) -> Vec<u32> {
    let (rgb, width, height) = drawn(picture);
    match processor.process(&rgb, width, height).unwrap() {
        ProcessedImage::Tokens(tokens) => tokens,
        ProcessedImage::Rows(_) => panic!("rows"),
    }
}

#[test]
fn pixels_are_those_of_the_published_processor() {
    let rule = PixelRule::from_files(&whole()).unwrap();
    for picture in pictures() {
        let (rgb, width, height) = drawn(&picture);
        let cropped = rule.cropped(&rgb, width, height).unwrap();
        assert_eq!(cropped.len(), 16 * 16 * 3);
        assert_eq!(fnv1a(&cropped) as usize, number(&picture, "cropped_fnv1a"), "{width} x {height}");
    }
}

#[test]
fn pictures_become_the_published_tokens_with_any_number_of_threads() {
    for threads in [1, 3] {
        let loaded = load(&whole(), &LoadOptions { threads: Some(threads), ..options() });
        let processor = loaded.image_processor.unwrap();
        assert_eq!((processor.transparency(), processor.num_tokens()), (Transparency::OnWhite, Some(66)));
        // Twice: nothing is left of a picture in the buffers that the next one reads.
        for picture in pictures().iter().chain(&pictures()) {
            assert_eq!(tokens(&*processor, picture), expected(picture), "{threads} threads");
        }
        let empty = processor.process(&[], 3, 0).unwrap_err();
        assert_eq!(empty, ImageError::Empty { width: 3, height: 0 });
    }
}

#[test]
fn what_follows_pictures_is_what_the_published_code_says() {
    let Loaded { mut runner, info, image_processor, plan, .. } = load(&whole(), &options());
    assert_eq!(info.image_token_id, Some(PLACEHOLDER));
    assert_eq!(info.eos_token_ids, [2, SEPARATOR]);
    let golden = read("pictures.json");
    let texts = golden["texts"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32);
    let mut prompt: Vec<u32> = Vec::new();
    let mut seen = golden["pictures"].as_array().unwrap().iter();
    for text in texts {
        prompt.push(text);
        if let Some(picture) = seen.next() {
            prompt.extend(tokens(&**image_processor.as_ref().unwrap(), picture));
        }
    }
    let len = prompt.len();
    let blocks = (0..len.div_ceil(plan.block_size) as u32).map(BlockId).collect();
    let sample = Some(Sample::new(Arc::new(SamplingParams::default()), len, 0));
    let item = BatchItem { prompt_len: len, sample, ..BatchItem::new(SequenceId(1), prompt, 0, blocks) };
    let found = runner.distributions(&Batch { items: vec![item], ..Default::default() }).pop().unwrap();
    let expected = golden["last_logprobs"].as_array().unwrap();
    assert_eq!(found.len(), expected.len());
    for (token, (found, expected)) in found.iter().zip(expected).enumerate() {
        let expected = expected.as_f64().unwrap();
        assert!((f64::from(*found) - expected).abs() < 1e-3, "token {token}: {found} is not {expected}");
    }
}

#[test]
fn the_plan_counts_the_encoder() {
    let options = options();
    let planned = models::plan(&whole(), &options).unwrap();
    let loaded = load(&whole(), &options);
    assert_eq!(loaded.plan, planned);
    let text_only = models::plan(&common::files("chameleon"), &options).unwrap();
    assert_eq!(text_only.memory.picture_encoder, 0);
    let more = planned.memory.picture_encoder;
    assert!(more > 4 * (planned.num_parameters - text_only.num_parameters), "{more}");
    assert!(planned.to_string().contains("picture encoder"));
    let dummy = LoadOptions { load_format: LoadFormat::Dummy, ..options };
    let processor = load(&whole(), &dummy).image_processor.unwrap();
    assert_eq!(tokens(&*processor, &pictures()[1]).len(), 66);
}

/// What the published class has, without the way back.
#[test]
fn the_published_encoder_has_its_size() {
    let config = models::chameleon::VqConfig::read("config.json", json!({}).as_object().unwrap()).unwrap();
    assert_eq!((config.parameters(), config.num_tokens()), (29_357_824, 1024));
}

#[test]
fn what_does_not_fit_together_is_named() {
    let check = |files: ModelFiles, expected: &str| {
        let message = refused(&files);
        assert!(message.contains(expected), "{message}");
    };
    check(
        files(|_, settings| settings["crop_size"] = json!({"height": 8, "width": 8})),
        "preprocessor_config.json: crop_size: 8 is not vq_config.resolution of config.json, 16",
    );
    check(
        files(|config, _| config["vq_config"]["num_embeddings"] = json!(17)),
        "config.json: vocabulary_map: has no token for entry 16 of the codebook",
    );
    check(
        files(|config, _| config["vq_config"]["embed_dim"] = json!(5)),
        "tensor model.vqmodel.quantize.embedding.weight: expected shape [16, 5], found [16, 4]",
    );
    check(
        files(|config, _| {
            config["vocabulary_map"].as_object_mut().unwrap().remove("<image>");
        }),
        "config.json: vocabulary_map: has no <image>",
    );
    // Without `vq_config` pictures are not read, and their weights may be there all the same.
    let text_only = files(|config, _| {
        config.as_object_mut().unwrap().remove("vq_config");
    });
    assert!(load(&text_only, &options()).image_processor.is_none());
}
