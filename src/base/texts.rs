//! Several strings one after the other in a single piece of memory.
//!
//! For what is made in one thread, read once in another and thrown away: two allocations instead of one a string, and
//! it is read from end to end.

/// See the module. Collected from strings, and never changed.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Texts {
    text: String,
    /// Where each of them ends.
    ends: Vec<u32>,
}

impl Texts {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let mut begin = 0;
        self.ends.iter().map(move |&end| {
            let text = &self.text[begin..end as usize];
            begin = end as usize;
            text
        })
    }

    /// All of them in one.
    pub fn joined(&self) -> &str {
        &self.text
    }
}

impl<S: AsRef<str>> FromIterator<S> for Texts {
    /// # Panics
    /// If they are longer than 4 GiB together.
    fn from_iter<I: IntoIterator<Item = S>>(texts: I) -> Texts {
        let mut all = Texts::default();
        for text in texts {
            all.text.push_str(text.as_ref());
            let end = u32::try_from(all.text.len()).expect("BUG: 4 GiB of strings in one piece");
            all.ends.push(end);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_comes_out() {
        let words = ["", "one", "", "zwei ‘2’", ""];
        let texts: Texts = words.into_iter().collect();
        assert!(texts.iter().eq(words));
        assert_eq!((texts.len(), texts.joined()), (5, "onezwei ‘2’"));
        assert!(Texts::default().is_empty() && Texts::default().iter().next().is_none());
    }
}
