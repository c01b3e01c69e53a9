//! Which formats a model uses: told from its chat template, or by name.

use super::calls::{Format, IdStyle};
use super::harmony::Harmony as HarmonyFormat;
use super::hermes::Hermes;
use super::llama::Llama3Json;
use super::marked::{DEEPSEEK, KIMI_K2, MarkedFormat};
use super::mistral::Mistral;
use super::pythonic::Pythonic;
use super::solar_open::SolarOpen as SolarOpenFormat;
use super::xml::{GLM, MINIMAX_M2, QWEN3_CODER, SEED_OSS, XmlCalls};

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    KimiK2,
    Hermes,
    Qwen3Coder,
    SeedOss,
    MiniMaxM2,
    Glm,
    Llama3Json,
    Pythonic,
    /// With fenced JSON.
    DeepSeekV3,
    DeepSeekV31,
    /// A list of calls after one marker.
    MistralList,
    /// A marker and a name for each call.
    Mistral,
    /// Of gpt-oss: all of the output is messages, calls among them.
    Harmony,
    /// All of the output is messages between control tokens.
    SolarOpen,
}

impl ToolFormat {
    pub const ALL: [Self; 14] = [
        Self::KimiK2,
        Self::Hermes,
        Self::Qwen3Coder,
        Self::SeedOss,
        Self::MiniMaxM2,
        Self::Glm,
        Self::Llama3Json,
        Self::Pythonic,
        Self::DeepSeekV3,
        Self::DeepSeekV31,
        Self::MistralList,
        Self::Mistral,
        Self::Harmony,
        Self::SolarOpen,
    ];
}

/// How a model writes its thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReasoningFormat {
    pub start: &'static str,
    pub end: &'static str,
    /// The model thinks at once, whether the prompt ends with the start marker or not.
    pub is_implied: bool,
}

/// What is looked for in a model's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutputFormat {
    pub tools: Option<ToolFormat>,
    /// The operator wants calls to be passed on as text.
    pub tools_are_text: bool,
    pub reasoning: Option<ReasoningFormat>,
}

/// What an operator says of a model's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parsers {
    pub tools: Choice<ToolFormat>,
    pub reasoning: Choice<ReasoningFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice<T> {
    #[default]
    FromTemplate,
    /// Passed on as text.
    Off,
    Is(T),
}

impl<T> Choice<T> {
    /// `none` is off; `auto` and nothing are what the template tells.
    pub fn named(name: Option<&str>, find: impl Fn(&str) -> Option<T>) -> Option<Self> {
        match name {
            None | Some("auto") => Some(Self::FromTemplate),
            Some("none") => Some(Self::Off),
            Some(name) => find(name).map(Self::Is),
        }
    }
}

const fn between(start: &'static str, end: &'static str) -> ReasoningFormat {
    ReasoningFormat { start, end, is_implied: false }
}

const KIMI_VL: ReasoningFormat = between("◁think▷", "◁/think▷");
const THINK: ReasoningFormat = between("<think>", "</think>");
const MISTRAL_THINK: ReasoningFormat = between("[THINK]", "[/THINK]");
const SEED_THINK: ReasoningFormat = between("<seed:think>", "</seed:think>");
/// The first message is as a rule thinking; later ones are found by the format of calls, which reads all headers.
const HARMONY_THINK: ReasoningFormat = between("<|channel|>analysis<|message|>", "<|end|>");
const SOLAR_THINK: ReasoningFormat = between("<|think|>", "<|end|>");

/// Names as in vLLM and SGLang; `none` is no name of a format.
const TOOL_NAMES: &[(&str, ToolFormat)] = &[
    ("kimi_k2", ToolFormat::KimiK2),
    ("hermes", ToolFormat::Hermes),
    ("qwen", ToolFormat::Hermes),
    ("qwen3_coder", ToolFormat::Qwen3Coder),
    ("qwen3_xml", ToolFormat::Qwen3Coder),
    ("seed_oss", ToolFormat::SeedOss),
    ("minimax_m2", ToolFormat::MiniMaxM2),
    ("glm45", ToolFormat::Glm),
    ("glm47", ToolFormat::Glm),
    ("llama3_json", ToolFormat::Llama3Json),
    ("llama4_json", ToolFormat::Llama3Json),
    ("pythonic", ToolFormat::Pythonic),
    ("llama4_pythonic", ToolFormat::Pythonic),
    ("deepseek_v3", ToolFormat::DeepSeekV3),
    ("deepseek_v31", ToolFormat::DeepSeekV31),
    ("mistral_list", ToolFormat::MistralList),
    ("mistral", ToolFormat::Mistral),
    ("harmony", ToolFormat::Harmony),
    ("openai", ToolFormat::Harmony),
    ("gpt-oss", ToolFormat::Harmony),
    ("solar_open", ToolFormat::SolarOpen),
];

const REASONING_NAMES: &[(&str, ReasoningFormat)] = &[
    ("kimi", KIMI_VL),
    ("kimi_k2", THINK),
    ("qwen3", THINK),
    ("deepseek_v3", THINK),
    ("deepseek_r1", ReasoningFormat { is_implied: true, ..THINK }),
    ("seed_oss", SEED_THINK),
    ("mistral", MISTRAL_THINK),
    ("harmony", HARMONY_THINK),
    ("openai_gptoss", HARMONY_THINK),
    ("gpt-oss", HARMONY_THINK),
    ("glm45", THINK),
    ("solar_open", SOLAR_THINK),
    ("minimax_m2", ReasoningFormat { is_implied: true, ..THINK }),
];

/// Strings that all have to be in a template, and the format of the models that come with it. The first that fits counts.
const TOOL_SIGNS: &[(&[&str], Option<ToolFormat>)] = &[
    (&["<|channel|>", "<|message|>"], Some(ToolFormat::Harmony)),
    (&["<|tool_calls|>", "<|tool_call:begin|>"], Some(ToolFormat::SolarOpen)),
    (&["<|tool_calls_section_begin|>"], Some(ToolFormat::KimiK2)),
    (&["<seed:tool_call>"], Some(ToolFormat::SeedOss)),
    (&["<｜tool▁calls▁begin｜>", "```json"], Some(ToolFormat::DeepSeekV3)),
    (&["<｜tool▁calls▁begin｜>"], Some(ToolFormat::DeepSeekV31)),
    (&["[TOOL_CALLS]", "[ARGS]"], Some(ToolFormat::Mistral)),
    (&["[TOOL_CALLS]"], Some(ToolFormat::MistralList)),
    (&["<minimax:tool_call>"], Some(ToolFormat::MiniMaxM2)),
    (&["<tool_call>", "<arg_key>"], Some(ToolFormat::Glm)),
    (&["<tool_call>", "<function="], Some(ToolFormat::Qwen3Coder)),
    (&["<tool_call>"], Some(ToolFormat::Hermes)),
    (&["[func_name1(params_name1=params_value1"], Some(ToolFormat::Pythonic)),
    (&["{\"name\": function name, \"parameters\": dictionary"], Some(ToolFormat::Llama3Json)),
    (&["<|python_tag|>"], Some(ToolFormat::Llama3Json)),
];

const REASONING_SIGNS: &[(&str, ReasoningFormat)] = &[
    ("<|channel|>analysis<|message|>", HARMONY_THINK),
    ("<|begin|>assistant<|think|>", SOLAR_THINK),
    ("◁think▷", KIMI_VL),
    ("<seed:think>", SEED_THINK),
    ("[THINK]", MISTRAL_THINK),
    ("<think>", THINK),
    ("</think>", THINK),
    // Kimi-VL-Thinking has the template of its siblings that do not think.
    ("<|im_middle|>", KIMI_VL),
];

impl ToolFormat {
    pub fn named(name: &str) -> Option<Self> {
        TOOL_NAMES.iter().find(|(known, _)| *known == name).map(|&(_, format)| format)
    }

    pub fn names() -> impl Iterator<Item = &'static str> {
        TOOL_NAMES.iter().map(|(name, _)| *name)
    }

    /// The first of its names.
    pub fn name(self) -> &'static str {
        TOOL_NAMES.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }

    pub fn detect(template: &str) -> Option<Self> {
        let fits = |signs: &[&str]| signs.iter().all(|sign| template.contains(sign));
        TOOL_SIGNS.iter().find(|(signs, _)| fits(signs)).and_then(|&(_, format)| format)
    }

    pub(super) fn machine(self) -> Box<dyn Format> {
        match self {
            Self::KimiK2 => Box::new(MarkedFormat::new(&KIMI_K2)),
            Self::DeepSeekV3 | Self::DeepSeekV31 => Box::new(MarkedFormat::new(&DEEPSEEK)),
            Self::Hermes => Box::new(Hermes::new()),
            Self::Qwen3Coder => Box::new(XmlCalls::new(&QWEN3_CODER)),
            Self::SeedOss => Box::new(XmlCalls::new(&SEED_OSS)),
            Self::MiniMaxM2 => Box::new(XmlCalls::new(&MINIMAX_M2)),
            Self::Glm => Box::new(XmlCalls::new(&GLM)),
            Self::Llama3Json => Box::new(Llama3Json::new()),
            Self::Pythonic => Box::new(Pythonic::new()),
            Self::MistralList | Self::Mistral => Box::new(Mistral::new()),
            Self::Harmony => Box::new(HarmonyFormat::new()),
            Self::SolarOpen => Box::new(SolarOpenFormat::new()),
        }
    }

    /// Whether every output is read by it, with tools or without: what is no call lies between its markers as well.
    pub fn frames_all(self) -> bool {
        matches!(self, Self::Harmony | Self::SolarOpen)
    }

    pub fn id_style(self) -> IdStyle {
        match self {
            Self::MistralList | Self::Mistral => IdStyle::NineLetters,
            Self::SolarOpen => IdStyle::TenLetters,
            _ => IdStyle::Call,
        }
    }

    /// Everything that the format may write as a control token.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::KimiK2 => &[
                "<|tool_calls_section_begin|>",
                "<|tool_calls_section_end|>",
                "<|tool_call_section_begin|>",
                "<|tool_call_section_end|>",
                "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
            ],
            Self::DeepSeekV3 | Self::DeepSeekV31 => &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁end｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁sep｜>",
            ],
            Self::Hermes | Self::Qwen3Coder => &["<tool_call>", "</tool_call>"],
            Self::SeedOss => &["<seed:tool_call>", "</seed:tool_call>"],
            Self::MiniMaxM2 => &["<minimax:tool_call>", "</minimax:tool_call>"],
            Self::Glm => {
                &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
            }
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Pythonic => &["<|python_start|>", "<|python_end|>"],
            Self::MistralList | Self::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            Self::Harmony => &[
                "<|channel|>",
                "<|start|>",
                "<|message|>",
                "<|constrain|>",
                "<|end|>",
                "<|call|>",
                "<|return|>",
            ],
            Self::SolarOpen => &[
                "<|begin|>",
                "<|think|>",
                "<|content|>",
                "<|tool_calls|>",
                "<|tool_call:begin|>",
                "<|tool_call:name|>",
                "<|tool_call:args|>",
                "<|tool_call:end|>",
                "<|calls|>",
                "<|end|>",
                "<|flush|>",
            ],
        }
    }
}

impl ReasoningFormat {
    pub fn named(name: &str) -> Option<Self> {
        REASONING_NAMES.iter().find(|(known, _)| *known == name).map(|&(_, format)| format)
    }

    pub fn names() -> impl Iterator<Item = &'static str> {
        REASONING_NAMES.iter().map(|(name, _)| *name)
    }

    pub fn detect(template: &str) -> Option<Self> {
        REASONING_SIGNS.iter().find(|(sign, _)| template.contains(sign)).map(|&(_, format)| format)
    }
}

impl OutputFormat {
    /// What the templates of a model tell of it.
    pub fn detect(template: &str) -> Self {
        Self {
            tools: ToolFormat::detect(template),
            tools_are_text: false,
            reasoning: ReasoningFormat::detect(template),
        }
    }

    /// With what an operator names instead.
    pub fn overridden(self, parsers: &Parsers) -> Self {
        let mut output = self;
        match parsers.tools {
            Choice::FromTemplate => {}
            Choice::Off => (output.tools, output.tools_are_text) = (None, true),
            Choice::Is(format) => output.tools = Some(format),
        }
        match parsers.reasoning {
            Choice::FromTemplate => {}
            Choice::Off => output.reasoning = None,
            Choice::Is(format) => output.reasoning = Some(format),
        }
        output
    }

    /// Everything that may come as a control token and has to reach the parser.
    pub fn markers(&self) -> Vec<&'static str> {
        let mut markers = self.tools.map_or(&[][..], ToolFormat::markers).to_vec();
        markers.extend(self.reasoning.iter().flat_map(|reasoning| [reasoning.start, reasoning.end]));
        markers
    }
}
