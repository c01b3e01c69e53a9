//! Who drafts: what `--speculative-config` says, and what a request says beside it.

use crate::error::ApiError;
use scheduler::{InvalidParam, NgramConfig};
use serde_json::{Map, Value, json};

/// The only way to draft that needs no second model, under vLLM's name.
const NGRAM: &str = "ngram";
const KEYS: [&str; 4] = ["method", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"];

/// How drafts are found, and whether requests draft that do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Speculation {
    pub is_default: bool,
    pub ngram: NgramConfig,
}

impl Speculation {
    /// What the flag's JSON says: `{"method": "ngram", "num_speculative_tokens": 4}`, and how many tokens before a draft are compared. Of
    /// the two bounds of that one alone stands for both, as in vLLM.
    pub fn parse(text: &str) -> Result<Self, String> {
        let map: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))?;
        if let Some(unknown) = map.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(format!("unknown key `{unknown}`; known are {}", KEYS.join(", ")));
        }
        match map.get("method") {
            Some(Value::String(method)) if method == NGRAM => {}
            Some(Value::String(method)) => {
                return Err(format!("method: unknown method `{method}`; known is {NGRAM}"));
            }
            Some(_) => return Err("method: expected a string".into()),
            None => return Err(format!("method: is missing; known is {NGRAM}")),
        }
        let number = |key: &str| match map.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|number| usize::try_from(number).ok()) {
                Some(number) => Ok(Some(number)),
                None => Err(format!("{key}: expected a whole number, got {value}")),
            },
        };
        let default = NgramConfig::default();
        let (max, min) = (number("prompt_lookup_max")?, number("prompt_lookup_min")?);
        let ngram = NgramConfig {
            num_speculative_tokens: number("num_speculative_tokens")?
                .ok_or("num_speculative_tokens: is missing")?,
            prompt_lookup_max: max.or(min).unwrap_or(default.prompt_lookup_max),
            prompt_lookup_min: min.or(max).unwrap_or(default.prompt_lookup_min),
        };
        ngram.check().map_err(|InvalidParam { param, message }| format!("{param}: {message}"))?;
        Ok(Self { is_default: true, ngram })
    }

    /// What a request gets that asks for drafts of so many tokens; 0 is none.
    pub fn of_request(&self, num_speculative_tokens: Option<usize>) -> Result<Option<NgramConfig>, ApiError> {
        match num_speculative_tokens {
            None => Ok(self.is_default.then_some(self.ngram)),
            Some(0) => Ok(None),
            Some(num_speculative_tokens) => {
                let ngram = NgramConfig { num_speculative_tokens, ..self.ngram };
                ngram.check()?;
                Ok(Some(ngram))
            }
        }
    }

    /// For `--print-config`.
    pub fn to_json(self) -> Value {
        let NgramConfig { num_speculative_tokens, prompt_lookup_max, prompt_lookup_min } = self.ngram;
        let config = json!({
            "method": NGRAM,
            "num_speculative_tokens": num_speculative_tokens,
            "prompt_lookup_max": prompt_lookup_max,
            "prompt_lookup_min": prompt_lookup_min,
        });
        if self.is_default { config } else { Value::Null }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ngram(k: usize, max: usize, min: usize) -> NgramConfig {
        NgramConfig { num_speculative_tokens: k, prompt_lookup_max: max, prompt_lookup_min: min }
    }

    #[test]
    fn the_flag_is_read_or_refused_by_name() {
        let read = |text: &str| Speculation::parse(text).map(|speculation| speculation.ngram);
        let all =
            r#"{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_max":5,"prompt_lookup_min":2}"#;
        assert_eq!(read(all), Ok(ngram(4, 5, 2)));
        assert_eq!(read(r#"{"method":"ngram","num_speculative_tokens":3}"#), Ok(ngram(3, 4, 2)));
        for bound in ["max", "min"] {
            let one = format!(r#"{{"method":"ngram","num_speculative_tokens":3,"prompt_lookup_{bound}":7}}"#);
            assert_eq!(read(&one), Ok(ngram(3, 7, 7)), "one bound is both");
        }
        for (wrong, message) in [
            ("", "expected a JSON object"),
            ("ngram", "expected a JSON object"),
            ("[]", "expected a JSON object"),
            ("{}", "method: is missing"),
            (r#"{"method":"eagle3","num_speculative_tokens":3}"#, "unknown method `eagle3`; known is ngram"),
            (r#"{"method":3}"#, "method: expected a string"),
            (r#"{"method":"ngram"}"#, "num_speculative_tokens: is missing"),
            (
                r#"{"method":"ngram","num_speculative_tokens":0}"#,
                "num_speculative_tokens: 0 is not in [1, 16]",
            ),
            (r#"{"method":"ngram","num_speculative_tokens":17}"#, "num_speculative_tokens: 17 is not in"),
            (r#"{"method":"ngram","num_speculative_tokens":-1}"#, "expected a whole number, got -1"),
            (r#"{"method":"ngram","num_speculative_tokens":"4"}"#, "expected a whole number, got \"4\""),
            (
                r#"{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_max":2,"prompt_lookup_min":3}"#,
                "prompt_lookup_min: 3 is not in [1, prompt_lookup_max = 2]",
            ),
            (
                r#"{"method":"ngram","num_speculative_tokens":4,"draft_model":"x"}"#,
                "unknown key `draft_model`; known are method, num_speculative_tokens",
            ),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(message), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_request_turns_it_on_and_off() {
        let flag = r#"{"method":"ngram","num_speculative_tokens":5,"prompt_lookup_max":3}"#;
        let (on, off) = (Speculation::parse(flag).unwrap(), Speculation::default());
        let of = |speculation: Speculation, asked| speculation.of_request(asked).unwrap();
        assert_eq!((of(on, None), of(off, None)), (Some(ngram(5, 3, 3)), None));
        assert_eq!((of(on, Some(0)), of(off, Some(0))), (None, None));
        assert_eq!((of(on, Some(2)), of(off, Some(2))), (Some(ngram(2, 3, 3)), Some(ngram(2, 4, 2))));
        assert!(off.of_request(Some(17)).is_err());
    }
}
