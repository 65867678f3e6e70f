//! Which jobs a plugin's block is about: Perl's `/^JOBS$/`, ungrouped as in Hydra, so `a|b` means "begins with a" or "ends
//! with b". Pure.

use regex::Regex;

/// A compiled pattern is not larger than this, bytes.
const SIZE_MAX: usize = 1 << 20;

/// The pattern of a block.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// `text` is what stands at `jobs`; missing is the same as empty, and matches nothing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Pattern, String> {
        regex::RegexBuilder::new(&format!("^{text}$"))
            .size_limit(SIZE_MAX)
            .build()
            .map(Pattern)
            .map_err(|error| {
                let text = error.to_string();
                let last = text
                    .lines()
                    .last()
                    .unwrap_or("")
                    .trim_start_matches("error: ");
                format!("it is no pattern hydrad can match: {last}")
            })
    }

    /// `job` is `PROJECT:JOBSET:JOB`.
    pub fn matches(&self, job: &str) -> bool {
        self.0.is_match(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_not_grouped_as_in_perl() {
        let matches = |pattern: &str, job| Pattern::new(pattern).expect(pattern).matches(job);
        assert!(matches("a:b:c", "a:b:c"));
        assert!(!matches("a:b:c", "a:b:c.d"));
        assert!(matches("a:.*", "a:b:c"));
        // Written by hand as Perl would see them: ^x:.*  or  .*:y$
        assert!(matches("x:|:y", "x:b:c"));
        assert!(matches("x:|:y", "a:b:y"));
        assert!(!matches("x:|:y", "a:x:b"));
        assert!(matches("(x|y):.*:c", "y:b:c"));
        assert!(!matches("(x|y):.*:c", "y:b:cc"));
        assert!(!matches("", "a:b:c"));
        let refused = Pattern::new("(?!x)").expect_err("look-around");
        assert!(refused.contains("look-around"), "{refused}");
    }
}
