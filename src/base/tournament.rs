//! The least of many keys that change all the time.
//!
//! Each key has a seat. A tree above the seats holds the lesser of each two, so that a change costs a few comparisons
//! on the way up, until it makes no difference, and the least key of all is at hand.

/// See the module.
pub struct Tournament<K> {
    /// The two below `n` are `2n` and `2n + 1`; the seats are the last half. Either empty or a power of two.
    nodes: Vec<K>,
    /// The key of an empty seat, greater than all others.
    none: K,
}

impl<K: Copy + Ord> Tournament<K> {
    pub fn new(none: K) -> Tournament<K> {
        Tournament {
            nodes: Vec::new(),
            none,
        }
    }

    /// The least key; that of an empty seat if all are empty.
    #[inline]
    pub fn least(&self) -> K {
        self.nodes.get(1).copied().unwrap_or(self.none)
    }

    pub fn get(&self, seat: u32) -> K {
        let at = self.nodes.len() / 2 + seat as usize;
        self.nodes.get(at).copied().unwrap_or(self.none)
    }

    /// The keys of the seats that are not empty.
    pub fn keys(&self) -> impl Iterator<Item = K> + '_ {
        let seats = &self.nodes[self.nodes.len() / 2..];
        seats.iter().copied().filter(|&key| key != self.none)
    }

    pub fn put(&mut self, seat: u32, key: K) {
        if seat as usize >= self.nodes.len() / 2 {
            self.grow(seat);
        }
        let mut at = self.nodes.len() / 2 + seat as usize;
        self.nodes[at] = key;
        while at > 1 {
            let least = self.nodes[at].min(self.nodes[at ^ 1]);
            at /= 2;
            if self.nodes[at] == least {
                return;
            }
            self.nodes[at] = least;
        }
    }

    fn grow(&mut self, seat: u32) {
        let old = self.nodes.split_off(self.nodes.len() / 2);
        let seats = (seat as usize + 1).next_power_of_two().max(2);
        self.nodes.clear();
        self.nodes.resize(2 * seats, self.none);
        self.nodes[seats..seats + old.len()].copy_from_slice(&old);
        for at in (1..seats).rev() {
            self.nodes[at] = self.nodes[2 * at].min(self.nodes[2 * at + 1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;

    #[test]
    fn the_least_is_always_the_least() {
        let mut random = Random::new(11);
        let mut keys = Tournament::new(u32::MAX);
        let mut model = [u32::MAX; 300];
        assert_eq!(keys.least(), u32::MAX);
        for round in 1..20_000u64 {
            let seat = random.below(round.min(300)) as usize;
            let key = match random.below(3) {
                0 => u32::MAX,
                _ => random.below(1_000) as u32,
            };
            keys.put(seat as u32, key);
            model[seat] = key;
            assert_eq!(Some(keys.least()), model.iter().copied().min());
            assert_eq!(keys.get(seat as u32), key);
        }
        assert!(keys
            .keys()
            .eq(model.into_iter().filter(|&key| key != u32::MAX)));
    }
}
