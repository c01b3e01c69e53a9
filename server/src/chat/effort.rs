//! How hard a model is to think: the API's word, in the variables that templates have for it.

use super::parse::ToolFormat;
use super::template::ChatTemplate;
use serde_json::{Map, Value};

/// OpenAI's and vLLM's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    XHigh,
    Max,
}

const WORDS: [(&str, Effort); 7] = [
    ("none", Effort::None),
    ("minimal", Effort::Minimal),
    ("low", Effort::Low),
    ("medium", Effort::Medium),
    ("high", Effort::High),
    ("xhigh", Effort::XHigh),
    ("max", Effort::Max),
];

const EFFORT: &str = "reasoning_effort";
/// Variables that turn thinking on and off: Qwen's, DeepSeek's and Kimi's.
const SWITCHES: [&str; 2] = ["enable_thinking", "thinking"];
/// Seed-OSS's budget in tokens; with 0 the model is told not to think.
const BUDGET: &str = "thinking_budget";

impl Effort {
    pub fn named(name: &str) -> Option<Self> {
        WORDS.iter().find(|(word, _)| *word == name).map(|&(_, effort)| effort)
    }

    pub fn names() -> String {
        WORDS.map(|(word, _)| word).join(", ")
    }

    pub fn is_followed_by(self, template: &ChatTemplate) -> bool {
        template.reads(EFFORT)
            || SWITCHES.iter().any(|switch| template.reads(switch))
            || (self == Self::None && template.reads(BUDGET))
    }

    /// gpt-oss knows low, medium and high, and always thinks.
    fn of_three(self) -> Self {
        match self {
            Self::None | Self::Minimal => Self::Low,
            Self::XHigh | Self::Max => Self::High,
            other => other,
        }
    }

    /// Solar Open's template knows of no thinking as the least of it.
    fn of_solar(self) -> Self {
        if self == Self::None { Self::Minimal } else { self }
    }

    /// Sets what the template reads. A variable that the request gives itself stays as it is.
    pub fn apply(self, template: &ChatTemplate, kwargs: &mut Map<String, Value>) {
        let mut set = |variable: &str, value: Value| {
            if template.reads(variable) {
                kwargs.entry(variable).or_insert(value);
            }
        };
        let effort = match template.output().tools {
            Some(ToolFormat::Harmony) => self.of_three(),
            Some(ToolFormat::SolarOpen) => self.of_solar(),
            _ => self,
        };
        let word = WORDS.iter().find(|(_, known)| *known == effort).map_or("", |(word, _)| word);
        set(EFFORT, word.into());
        for switch in SWITCHES {
            set(switch, (self != Self::None).into());
        }
        if self == Self::None {
            set(BUDGET, 0.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Its default is a variable of the same name.
    const SOLAR: &str = "{%- set reasoning_effort = reasoning_effort if reasoning_effort is defined else 'high' -%}\
                         {{ reasoning_effort }}<|tool_calls|><|tool_call:begin|>";

    #[test]
    fn sets_what_the_template_reads() {
        for (source, effort, given, expected) in [
            ("{{ reasoning_effort }}", "low", json!({}), json!({"reasoning_effort": "low"})),
            ("{% if enable_thinking %}{% endif %}", "none", json!({}), json!({"enable_thinking": false})),
            ("{% if thinking %}{% endif %}", "high", json!({}), json!({"thinking": true})),
            ("{% if thinking %}{% endif %}", "none", json!({"thinking": true}), json!({"thinking": true})),
            ("{{ thinking_budget }}", "none", json!({}), json!({"thinking_budget": 0})),
            ("{{ thinking_budget }}", "high", json!({}), json!({})),
            (
                "{{ reasoning_effort }}<|channel|><|message|>",
                "max",
                json!({}),
                json!({"reasoning_effort": "high"}),
            ),
            (
                "{{ reasoning_effort }}<|channel|><|message|>",
                "none",
                json!({}),
                json!({"reasoning_effort": "low"}),
            ),
            (SOLAR, "none", json!({}), json!({"reasoning_effort": "minimal"})),
            (SOLAR, "low", json!({}), json!({"reasoning_effort": "low"})),
            (SOLAR, "high", json!({}), json!({"reasoning_effort": "high"})),
            (SOLAR, "none", json!({"reasoning_effort": "high"}), json!({"reasoning_effort": "high"})),
            ("nothing", "none", json!({}), json!({})),
        ] {
            let template = ChatTemplate::from_source(source).expect("parses");
            let effort = Effort::named(effort).expect("a word");
            let mut kwargs = given.as_object().expect("an object").clone();
            effort.apply(&template, &mut kwargs);
            assert_eq!(Value::Object(kwargs.clone()), expected, "{source}");
            let is_given = given == expected && given != json!({});
            assert_eq!(effort.is_followed_by(&template), expected != json!({}) || is_given, "{source}");
        }
        assert_eq!(Effort::named("much"), None);
    }
}
