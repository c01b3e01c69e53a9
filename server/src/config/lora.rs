//! Flags of adapters. Without `--enable-lora` none of the others may be given: a server that leaves out what its command line names would be
//! found out by its clients.

use super::{ConfigError, fail};
use crate::adapters::{AdapterModule, AdapterOptions, Root};
use crate::args::LoraArgs;

/// As in vLLM.
pub const MAX_RANK: usize = 16;

pub struct Lora {
    pub adapters: AdapterOptions,
    /// Whether single experts may have some.
    pub experts: bool,
    pub max_rank: usize,
}

pub fn lower(args: LoraArgs) -> Result<Lora, ConfigError> {
    let LoraArgs {
        enable_lora,
        lora_modules,
        max_loras,
        max_cpu_loras,
        max_lora_rank,
        lora_experts,
        enable_runtime_lora_updating,
        lora_root,
    } = args;
    if !enable_lora {
        for (flag, given) in [
            ("lora-modules", !lora_modules.is_empty()),
            ("max-loras", max_loras.is_some()),
            ("max-cpu-loras", max_cpu_loras.is_some()),
            ("max-lora-rank", max_lora_rank.is_some()),
            ("lora-experts", lora_experts),
            ("enable-runtime-lora-updating", enable_runtime_lora_updating),
            ("lora-root", lora_root.is_some()),
        ] {
            if given {
                return Err(fail(flag)("needs --enable-lora".into()));
            }
        }
        return Ok(Lora { adapters: AdapterOptions::default(), experts: false, max_rank: MAX_RANK });
    }
    let modules: Vec<AdapterModule> = super::parse_all("lora-modules", &lora_modules)?;
    for (index, module) in modules.iter().enumerate() {
        if modules[..index].iter().any(|earlier| earlier.name == module.name) {
            return Err(fail("lora-modules")(format!("`{}` is given twice", module.name)));
        }
    }
    let max_rank = max_lora_rank.unwrap_or(MAX_RANK);
    if max_rank == 0 {
        return Err(fail("max-lora-rank")("must be at least 1".into()));
    }
    let max_loras =
        max_loras.unwrap_or_else(|| modules.len().min(max_cpu_loras.unwrap_or(usize::MAX)).max(1));
    let is_limited = max_cpu_loras.is_some();
    let max_cpu_loras = max_cpu_loras.unwrap_or(max_loras);
    if max_loras == 0 {
        return Err(fail("max-loras")("must be at least 1".into()));
    }
    if max_cpu_loras < max_loras {
        return Err(fail("max-cpu-loras")(format!("{max_cpu_loras} is below --max-loras, {max_loras}")));
    }
    if modules.len() > max_cpu_loras {
        let message = format!(
            "{max_cpu_loras} is below the {} of --lora-modules: --max-cpu-loras keeps more than are in one step",
            modules.len()
        );
        return Err(fail(if is_limited { "max-cpu-loras" } else { "max-loras" })(message));
    }
    let root = match (enable_runtime_lora_updating, lora_root) {
        (false, None) => None,
        (false, Some(_)) => return Err(fail("lora-root")("needs --enable-runtime-lora-updating".into())),
        (true, Some(folder)) => Some(Root::open(&folder).map_err(fail("lora-root"))?),
        (true, None) => {
            let message = "needs --lora-root: requests name folders that this process then reads".into();
            return Err(fail("enable-runtime-lora-updating")(message));
        }
    };
    Ok(Lora {
        adapters: AdapterOptions { max_loras, max_cpu_loras, modules, root },
        experts: lora_experts,
        max_rank,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> LoraArgs {
        LoraArgs {
            enable_lora: true,
            lora_modules: vec!["a=x".into(), r#"{"name": "b", "path": "y"}"#.into()],
            max_loras: None,
            max_cpu_loras: None,
            max_lora_rank: None,
            lora_experts: false,
            enable_runtime_lora_updating: false,
            lora_root: None,
        }
    }

    #[test]
    fn room_for_what_is_named_and_no_less_than_for_one() {
        let Lora { adapters, experts, max_rank } = lower(args()).expect("sound");
        assert_eq!((adapters.max_loras, adapters.modules.len(), experts, max_rank), (2, 2, false, 16));
        assert!(lower(LoraArgs { lora_experts: true, ..args() }).expect("sound").experts);
        for (max_loras, max_cpu_loras, expected) in [
            (None, None, (2, 2)),
            (Some(1), Some(5), (1, 5)),
            (None, Some(3), (2, 3)),
            (Some(3), None, (3, 3)),
        ] {
            let adapters = lower(LoraArgs { max_loras, max_cpu_loras, ..args() }).expect("sound").adapters;
            assert_eq!((adapters.max_loras, adapters.max_cpu_loras), expected);
        }
        let empty = lower(LoraArgs { lora_modules: Vec::new(), ..args() }).expect("sound");
        assert_eq!(empty.adapters.max_loras, 1);
        let off = lower(LoraArgs { enable_lora: false, lora_modules: Vec::new(), ..args() }).expect("sound");
        assert_eq!((off.adapters, off.max_rank), (AdapterOptions::default(), 16));
        let here = Some(".".into());
        let root = lower(LoraArgs { enable_runtime_lora_updating: true, lora_root: here, ..args() });
        assert!(root.expect("sound").adapters.root.is_some());
    }

    #[test]
    fn mistakes_name_their_flag() {
        let off = || LoraArgs { enable_lora: false, lora_modules: Vec::new(), ..args() };
        for (wrong, flag) in [
            (LoraArgs { enable_lora: false, ..args() }, "lora-modules"),
            (LoraArgs { max_loras: Some(2), ..off() }, "max-loras"),
            (LoraArgs { max_lora_rank: Some(2), ..off() }, "max-lora-rank"),
            (LoraArgs { lora_experts: true, ..off() }, "lora-experts"),
            (LoraArgs { lora_root: Some(".".into()), ..off() }, "lora-root"),
            (LoraArgs { enable_runtime_lora_updating: true, ..off() }, "enable-runtime-lora-updating"),
            (LoraArgs { lora_modules: vec!["a".into()], ..args() }, "lora-modules"),
            (LoraArgs { lora_modules: vec!["a=x".into(), "a=y".into()], ..args() }, "lora-modules"),
            (LoraArgs { max_loras: Some(1), ..args() }, "max-loras"),
            (LoraArgs { max_cpu_loras: Some(4), ..off() }, "max-cpu-loras"),
            (LoraArgs { max_loras: Some(3), max_cpu_loras: Some(2), ..args() }, "max-cpu-loras"),
            (LoraArgs { max_cpu_loras: Some(1), ..args() }, "max-cpu-loras"),
            (LoraArgs { max_cpu_loras: Some(0), ..args() }, "max-cpu-loras"),
            (LoraArgs { max_loras: Some(0), lora_modules: Vec::new(), ..args() }, "max-loras"),
            (LoraArgs { max_lora_rank: Some(0), ..args() }, "max-lora-rank"),
            (LoraArgs { enable_runtime_lora_updating: true, ..args() }, "enable-runtime-lora-updating"),
            (LoraArgs { lora_root: Some(".".into()), ..args() }, "lora-root"),
            (
                LoraArgs {
                    enable_runtime_lora_updating: true,
                    lora_root: Some("/no/such/folder".into()),
                    ..args()
                },
                "lora-root",
            ),
        ] {
            assert_eq!(lower(wrong).err().map(|error| error.flag), Some(flag));
        }
    }
}
