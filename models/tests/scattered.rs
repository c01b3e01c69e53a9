//! Groups of scattered columns, as GPTQ with `desc_act` and compressed-tensors with `actorder: group` have them: against a checkpoint of the
//! floats that they stand for.

mod common;

use common::adapters::{Stored, folder, write};
use common::{fixture, options};
use models::{LoadError, LoadOptions, Loaded, ModelFiles, QuantizationChoice};
use safetensors::{Dtype, SafeTensors};
use scheduler::{Batch, BatchItem, BlockId, Sample, SamplingParams, SequenceId};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const GROUP: usize = 32;

/// A fixture of four bits in groups of 32, and how its tensors lie.
struct Form {
    fixture: &'static str,
    levels: &'static str,
    groups: &'static str,
    is_gptq: bool,
}

const FORMS: [Form; 2] = [
    Form { fixture: "gptq_zeros", levels: "qweight", groups: "g_idx", is_gptq: true },
    Form { fixture: "compressed_int4", levels: "weight_packed", groups: "weight_g_idx", is_gptq: false },
];

/// The column of the fixture that takes the place of column `k`: neighbours come from all groups.
fn source(k: usize, width: usize) -> usize {
    let groups = width / GROUP;
    k % groups * GROUP + k / groups
}

fn words(data: &[u8]) -> Vec<u32> {
    data.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
}

fn nibble(words: &[u32], word: usize, at: usize) -> u32 {
    words[word] >> (4 * at) & 15
}

impl Form {
    fn read(&self) -> (Value, Vec<u8>) {
        let folder = fixture("quantised").join(self.fixture);
        let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        (config, std::fs::read(folder.join("model.safetensors")).unwrap())
    }

    /// Rows, columns, and where the level of a row and a column is: which word.
    fn shape(&self, shape: &[usize]) -> [usize; 2] {
        if self.is_gptq { [shape[1], 8 * shape[0]] } else { [shape[0], 8 * shape[1]] }
    }

    fn word(&self, [n, k]: [usize; 2], row: usize, column: usize) -> usize {
        if self.is_gptq { column / 8 * n + row } else { row * (k / 8) + column / 8 }
    }

    /// Folders of the form with its columns in another order, and of floats.
    fn write(&self, test: &str, change: impl Fn(&mut Value, &mut BTreeMap<String, Stored>)) -> [PathBuf; 2] {
        let (mut config, bytes) = self.read();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (mut scattered, mut floats) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in file.tensors() {
            let stored = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            let Some((module, part)) = name.rsplit_once('.') else { panic!("{name} has no module") };
            let tensor = |part: &str| file.tensor(&format!("{module}.{part}")).unwrap();
            if part == self.levels {
                let (shape @ [n, k], old) = (self.shape(view.shape()), words(view.data()));
                let mut new = vec![0u32; old.len()];
                let mut values = Vec::new();
                for row in 0..n {
                    for column in 0..k {
                        let from = source(column, k);
                        let level = nibble(&old, self.word(shape, row, from), from % 8);
                        new[self.word(shape, row, column)] |= level << (4 * (column % 8));
                        let group = from / GROUP;
                        let (scale, zero) = match self.is_gptq {
                            true => {
                                let scales = tensor("scales");
                                let at = 2 * (group * n + row);
                                let scale =
                                    half::f16::from_le_bytes([scales.data()[at], scales.data()[at + 1]]);
                                let zeros = words(tensor("qzeros").data());
                                (scale.to_f32(), nibble(&zeros, group * (n / 8) + row / 8, row % 8) + 1)
                            }
                            false => {
                                let scales = tensor("weight_scale");
                                let at = 2 * (row * (k / GROUP) + group);
                                let scale =
                                    half::bf16::from_le_bytes([scales.data()[at], scales.data()[at + 1]]);
                                (scale.to_f32(), 8)
                            }
                        };
                        values.push(scale * (level as f32 - zero as f32));
                    }
                }
                let new = new.iter().flat_map(|word| word.to_le_bytes()).collect();
                scattered.insert(name.clone(), (Dtype::I32, view.shape().to_vec(), new));
                let groups: Vec<u8> =
                    (0..k).flat_map(|column| ((source(column, k) / GROUP) as i32).to_le_bytes()).collect();
                scattered.insert(format!("{module}.{}", self.groups), (Dtype::I32, vec![k], groups));
                floats.insert(format!("{module}.weight"), common::adapters::floats(&[n, k], &values));
            } else if part != "g_idx" {
                let is_part = ["qzeros", "scales", "weight_scale", "weight_shape"].contains(&part);
                if !is_part {
                    floats.insert(name.clone(), stored.clone());
                }
                scattered.insert(name, stored);
            }
        }
        let made = |what: &str, config: &Value, tensors: &BTreeMap<String, Stored>| {
            let folder = folder(&format!("scattered-{test}-{}-{what}", self.fixture));
            std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
            write(&folder.join("model.safetensors"), tensors);
            folder
        };
        let mut plain = config.clone();
        plain.as_object_mut().unwrap().remove("quantization_config");
        let quantization = &mut config["quantization_config"];
        match self.is_gptq {
            true => quantization["desc_act"] = json!(true),
            false => quantization["config_groups"]["group_0"]["weights"]["actorder"] = json!("group"),
        }
        change(quantization, &mut scattered);
        [made("form", &config, &scattered), made("floats", &plain, &floats)]
    }
}

fn load(folder: &Path, options: &LoadOptions) -> Result<Loaded, LoadError> {
    models::load(&ModelFiles::Directory(folder.into()), options, &mut |_| {})
}

fn last_log_probs(loaded: &mut Loaded) -> Vec<f32> {
    let tokens: Vec<u32> = (0..11).map(|i| (i * 37 + 5) % 64).collect();
    let blocks = (0..tokens.len().div_ceil(loaded.plan.block_size) as u32).map(BlockId).collect();
    let item = BatchItem {
        sample: Some(Sample::new(Arc::new(SamplingParams::default()), tokens.len(), 0)),
        ..BatchItem::new(SequenceId(1), tokens, 0, blocks)
    };
    let batch = Batch { items: vec![item], ..Default::default() };
    loaded.runner.distributions(&batch).pop().expect("one distribution")
}

#[test]
fn columns_in_another_order_are_the_floats_that_they_stand_for() {
    for form in &FORMS {
        let [scattered, floats] = form.write("floats", |_, _| {});
        for quantization in [QuantizationChoice::Auto, QuantizationChoice::Int8] {
            let options = LoadOptions { quantization, ..options() };
            let mut loaded =
                load(&scattered, &options).unwrap_or_else(|error| panic!("{}: {error}", form.fixture));
            assert_eq!(loaded.runner.device().allocated_bytes(), loaded.plan.memory.total);
            let found = last_log_probs(&mut loaded);
            assert!(found.iter().all(|x| x.is_finite()));
            assert_eq!(found, last_log_probs(&mut load(&floats, &options).unwrap()), "{}", form.fixture);
        }
        let straight = fixture("quantised").join(form.fixture);
        assert_ne!(last_log_probs(&mut load(&straight, &options()).unwrap()), {
            last_log_probs(&mut load(&scattered, &options()).unwrap())
        });
    }
}

#[test]
fn groups_that_are_not_there_are_named() {
    for form in &FORMS {
        let name = |tensors: &BTreeMap<String, Stored>| {
            tensors.keys().find(|name| name.ends_with(form.groups)).unwrap().clone()
        };
        let message = |change: &dyn Fn(&mut Value, &mut BTreeMap<String, Stored>)| {
            let [scattered, _] = form.write("named", change);
            load(&scattered, &options()).err().expect("an error").to_string()
        };
        let beyond = message(&|_, tensors| {
            let name = name(tensors);
            tensors.get_mut(&name).unwrap().2[..4].copy_from_slice(&7i32.to_le_bytes());
        });
        assert!(beyond.contains(form.groups) && beyond.contains("column 0 is of group 7"), "{beyond}");
        let missing = message(&|_, tensors| {
            let name = name(tensors);
            tensors.remove(&name);
        });
        assert!(missing.contains(form.groups) && missing.contains("is missing"), "{missing}");
        if form.is_gptq {
            let straight = message(&|config, _| config["desc_act"] = json!(false));
            assert!(
                straight.contains("g_idx") && straight.contains("though desc_act is false"),
                "{straight}"
            );
        }
    }
}
