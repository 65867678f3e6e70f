//! A growing set of small integers.

/// A set of `u32`, one bit each. Meant for dense small numbers: memory follows the largest member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits {
    words: Vec<u64>,
}

impl Bits {
    pub fn set(&mut self, at: u32, on: bool) {
        let word = at as usize / 64;
        if word >= self.words.len() {
            if !on {
                return;
            }
            self.words.resize(word + 1, 0);
        }
        let bit = 1u64 << (at % 64);
        if on {
            self.words[word] |= bit;
        } else {
            self.words[word] &= !bit;
        }
    }

    pub fn has(&self, at: u32) -> bool {
        self.words
            .get(at as usize / 64)
            .is_some_and(|word| word & (1 << (at % 64)) != 0)
    }

    pub fn clear(&mut self) {
        self.words.clear();
    }

    pub fn add_all(&mut self, other: &Bits) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
        }
    }

    /// Is a member of `self` also in `with`, and not in `without`?
    pub fn meets(&self, with: &Bits, without: Option<&Bits>) -> bool {
        (0..self.words.len()).any(|i| self.word(i, with, without) != 0)
    }

    /// Members of `self` that are also in `with`, and not in `without`; ascending.
    pub fn meeting<'a>(
        &'a self,
        with: &'a Bits,
        without: Option<&'a Bits>,
    ) -> impl Iterator<Item = u32> + 'a {
        (0..self.words.len()).flat_map(move |i| {
            let mut word = self.word(i, with, without);
            std::iter::from_fn(move || {
                if word == 0 {
                    return None;
                }
                let bit = word.trailing_zeros();
                word &= word - 1;
                Some(i as u32 * 64 + bit)
            })
        })
    }

    fn word(&self, i: usize, with: &Bits, without: Option<&Bits>) -> u64 {
        let both = self.words[i] & with.words.get(i).copied().unwrap_or(0);
        both & !without.and_then(|w| w.words.get(i).copied()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(members: &[u32]) -> Bits {
        let mut bits = Bits::default();
        for &at in members {
            bits.set(at, true);
        }
        bits
    }

    #[test]
    fn meeting_is_the_intersection_less_the_excluded() {
        let a = bits(&[1, 63, 64, 200]);
        let b = bits(&[0, 63, 64, 200, 1000]);
        assert_eq!(a.meeting(&b, None).collect::<Vec<_>>(), [63, 64, 200]);
        assert_eq!(
            a.meeting(&b, Some(&bits(&[64]))).collect::<Vec<_>>(),
            [63, 200]
        );
        assert!(a.meets(&b, None));
        assert!(!a.meets(&b, Some(&bits(&[63, 64, 200]))));
        assert!(!a.meets(&Bits::default(), None));
    }

    #[test]
    fn a_bit_can_be_taken_back() {
        let mut a = bits(&[5, 70]);
        a.set(5, false);
        a.set(5000, false);
        assert!(!a.has(5) && a.has(70) && !a.has(5000));
        let mut sum = bits(&[1]);
        sum.add_all(&a);
        assert_eq!(sum, bits(&[1, 70]));
    }
}
