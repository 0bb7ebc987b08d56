//! What is wrong with an experiment, where, why, and the way out.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A text that a user wrote: an experiment file, a profile, a `--set` argument.
#[derive(Debug, PartialEq, Eq)]
pub struct SourceText {
    /// Path of the file, or `--set`.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// A place in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The text.
    pub source: Arc<SourceText>,
    /// Bytes of it.
    pub span: Range<usize>,
}

impl Place {
    /// The text at the place.
    pub fn text(&self) -> &str {
        self.source.text.get(self.span.clone()).unwrap_or_default()
    }

    /// Line and column of the place's beginning, from 1; columns count characters.
    pub fn line_and_column(&self) -> (usize, usize) {
        let before = self.source.text.get(..self.span.start).unwrap_or(&self.source.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where. Of a value that nobody wrote, what made it necessary.
    pub place: Place,
    /// The dotted key, e.g. `attack.poisoning_ratio`.
    pub key: String,
    /// The value as written; `None` where the key itself is wrong or missing.
    pub value: Option<String>,
    /// What is wrong.
    pub reason: String,
    /// The way out.
    pub hint: String,
}

impl Diagnostic {
    /// What is wrong in a line, without the place and the way out.
    pub fn message(&self) -> String {
        match (&self.value, self.key.as_str()) {
            (_, "") => self.reason.clone(),
            (Some(value), key) => format!("`{key}` = {value}: {}", self.reason),
            (None, key) => format!("`{key}`: {}", self.reason),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.place.line_and_column();
        write!(f, "{}:{line}:{column}: {}; {}", self.place.source.name, self.message(), self.hint)
    }
}

/// An experiment that is refused, with everything that is wrong with it. Nothing was trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// In the order of the texts; at least one.
    pub diagnostics: Vec<Diagnostic>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, diagnostic) in self.diagnostics.iter().enumerate() {
            let separator = if position == 0 { "" } else { "\n" };
            write!(f, "{separator}{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// Collects what is wrong, each thing once: the same value is checked again at every grid point.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    found: Vec<Diagnostic>,
}

impl Problems {
    pub fn add(
        &mut self,
        place: &Place,
        key: impl Into<String>,
        value: Option<String>,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let (key, reason, hint) = (key.into(), reason.into(), hint.into());
        let diagnostic = Diagnostic { place: place.clone(), key, value, reason, hint };
        if !self.found.contains(&diagnostic) {
            self.found.push(diagnostic);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// `Err` with everything found so far, if anything was.
    pub fn refuse_if_any(&mut self) -> Result<(), Refusal> {
        if self.found.is_empty() {
            return Ok(());
        }
        let mut diagnostics = std::mem::take(&mut self.found);
        diagnostics.sort_by(|a, b| {
            let order = |diagnostic: &Diagnostic| (diagnostic.place.source.name.clone(), diagnostic.place.span.start);
            order(a).cmp(&order(b))
        });
        Err(Refusal { diagnostics })
    }
}

/// `did you mean ...?` if one of `known` is close to `word`, else what there is.
pub(crate) fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let folded = |text: &str| text.to_lowercase().replace('-', "_");
    let closest = known.iter().map(|name| (distance(&folded(word), &folded(name)), name)).min();
    match closest {
        Some((distance, name)) if distance <= name.chars().count().div_ceil(3) => format!("did you mean `{name}`?"),
        _ if known.is_empty() => "nothing can be set here".to_owned(),
        _ => format!("there are: {}", known.join(", ")),
    }
}

/// Edit distance where swapping two neighbours counts as one edit.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let width = other.len() + 1;
    let mut table = vec![0; (one.len() + 1) * width];
    for i in 0..=one.len() {
        for j in 0..=other.len() {
            table[i * width + j] = if i == 0 || j == 0 {
                i + j
            } else {
                let same = usize::from(one[i - 1] != other[j - 1]);
                let mut best = (table[(i - 1) * width + j - 1] + same)
                    .min(table[(i - 1) * width + j] + 1)
                    .min(table[i * width + j - 1] + 1);
                if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                    best = best.min(table[(i - 2) * width + j - 2] + 1);
                }
                best
            };
        }
    }
    table[one.len() * width + other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_answered_with_the_word_that_was_meant() {
        let known = ["poisoning_ratio", "target_class", "labels"];
        assert_eq!(suggest("poisonning_ratio", known), "did you mean `poisoning_ratio`?");
        assert_eq!(suggest("target-class", known), "did you mean `target_class`?");
        assert_eq!(suggest("lables", known), "did you mean `labels`?");
        assert_eq!(suggest("epochs", known), "there are: poisoning_ratio, target_class, labels");
    }

    #[test]
    fn a_place_knows_its_line_and_column_in_characters() {
        let source = Arc::new(SourceText { name: "x.toml".into(), text: "a = 1\nü = \"é\"\n".into() });
        let start = source.text.find("\"é").unwrap();
        let place = Place { source, span: start..start + 4 };
        assert_eq!((place.line_and_column(), place.text()), ((2, 5), "\"é\""));
    }
}
