//! Names of modules as compressed-tensors writes them: a name, `re:` and an expression that must match from the name's beginning,
//! or the class `Linear`.

use regex::Regex;

#[derive(Debug, Clone)]
pub(super) enum Pattern {
    /// Every linear layer.
    Linear,
    Name(String),
    Expression(Regex),
}

impl Pattern {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("re:") {
            Some(expression) => Regex::new(&format!("^(?:{expression})"))
                .map(Self::Expression)
                .map_err(|_| format!("{expression:?} is not an expression that can be matched here")),
            None if text == "Linear" => Ok(Self::Linear),
            None => Ok(Self::Name(text.into())),
        }
    }

    /// Names in the files may begin with the decoder's place in a larger model, which those of the list need not.
    pub fn is_match(&self, module: &str) -> bool {
        let inner = module.strip_prefix("language_model.").unwrap_or(module);
        match self {
            Self::Linear => true,
            Self::Name(name) => name == module || name == inner,
            Self::Expression(expression) => expression.is_match(module) || expression.is_match(inner),
        }
    }
}
