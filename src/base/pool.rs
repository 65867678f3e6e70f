//! Many small lists in one array.
//!
//! A list is two numbers; its items lie side by side, in a block whose size follows from the list's length. Freed
//! blocks are used again for lists of about the same length. No allocation per list, no pointer from item to item.

use super::{huge, prefetch};

/// A list in a [`Pool`]. Copying it does not copy the items: whoever changes or frees a list owns it.
#[derive(Clone, Copy, Debug, Default)]
pub struct List {
    at: u32,
    len: u32,
}

impl List {
    pub const EMPTY: List = List { at: 0, len: 0 };

    pub fn len(self) -> usize {
        self.len as usize
    }

    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// See the module.
pub struct Pool<T> {
    /// Those from `end` on belong to no block yet.
    items: Vec<T>,
    end: usize,
    /// Freed blocks by size class.
    free: Vec<Vec<u32>>,
}

impl<T> Default for Pool<T> {
    fn default() -> Pool<T> {
        Pool {
            items: Vec::new(),
            end: 0,
            free: Vec::new(),
        }
    }
}

/// Items made ahead when there is no room.
const GROWTH: usize = 1_000;

/// Block sizes: 2, 4, 8, 12, 16, 24, 32, 48 and so on.
fn class_of(len: u32) -> usize {
    if len <= 8 {
        return usize::from(len > 2) + usize::from(len > 4);
    }
    // Between two powers of two there is one step.
    let power = (len - 1).ilog2();
    2 * power as usize - 3 + usize::from(len > 3 << (power - 1))
}

fn size_of_class(class: usize) -> u32 {
    match class {
        0..=2 => 2 << class,
        _ if class % 2 == 1 => 3 << (class / 2 + 1),
        _ => 4 << (class / 2),
    }
}

impl<T: Copy> Pool<T> {
    pub fn get(&self, list: List) -> &[T] {
        &self.items[list.at as usize..list.at as usize + list.len as usize]
    }

    /// A new list of these items.
    ///
    /// # Panics
    /// If the pool would hold more than 2^32 items.
    pub fn list(&mut self, items: &[T]) -> List {
        if items.is_empty() {
            return List::default();
        }
        let len = u32::try_from(items.len()).expect("BUG: a list of more than 2^32 items");
        let at = self.block(class_of(len), items[0]);
        self.items[at as usize..at as usize + items.len()].copy_from_slice(items);
        List { at, len }
    }

    /// Fetches what [`Pool::push`] needs.
    #[inline]
    pub fn fetch_end(&self, list: List) {
        if list.len > 0 {
            prefetch::item(&self.items, list.at as usize + list.len as usize - 1);
        }
    }

    pub fn push(&mut self, list: &mut List, item: T) {
        if list.len == 0 {
            *list = self.list(&[item]);
            return;
        }
        let class = class_of(list.len);
        if list.len == size_of_class(class) {
            let at = self.block(class_of(list.len + 1), item);
            let from = list.at as usize;
            self.items
                .copy_within(from..from + list.len as usize, at as usize);
            self.free[class].push(list.at);
            list.at = at;
        }
        self.items[list.at as usize + list.len as usize] = item;
        list.len += 1;
    }

    /// Gives a list's block back and leaves the list empty.
    pub fn clear(&mut self, list: &mut List) {
        if list.len > 0 {
            self.free[class_of(list.len)].push(list.at);
            *list = List::default();
        }
    }

    /// Keeps only some items, in their order.
    pub fn retain(&mut self, list: &mut List, keep: impl Fn(&T) -> bool) {
        let kept: Vec<T> = self.get(*list).iter().copied().filter(keep).collect();
        self.clear(list);
        *list = self.list(&kept);
    }

    fn block(&mut self, class: usize, filler: T) -> u32 {
        if self.free.len() <= class {
            self.free.resize_with(class + 1, Vec::new);
        }
        if let Some(at) = self.free[class].pop() {
            return at;
        }
        let at = self.end;
        self.end += size_of_class(class) as usize;
        assert!(
            self.end <= u32::MAX as usize,
            "BUG: a pool of more than 2^32 items"
        );
        if self.end > self.items.len() {
            let missing = self.end + GROWTH - self.items.len();
            huge::reserve(&mut self.items, missing);
            self.items.resize(self.end + GROWTH, filler);
        }
        at as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;

    #[test]
    fn classes_are_the_smallest_that_fit() {
        for len in 1..5_000 {
            let class = class_of(len);
            assert!(size_of_class(class) >= len, "{len}");
            assert!(class == 0 || size_of_class(class - 1) < len, "{len}");
        }
    }

    #[test]
    fn lists_keep_their_items_and_blocks_are_used_again() {
        let mut random = Random::new(5);
        let mut pool = Pool::default();
        let mut lists: Vec<(List, Vec<u64>)> = vec![(List::default(), Vec::new()); 50];
        for _ in 0..20_000 {
            let word = random.word();
            let (list, model) = &mut lists[random.below(50) as usize];
            match random.below(40) {
                0 => {
                    pool.clear(list);
                    model.clear();
                }
                1 => {
                    pool.retain(list, |item| item % 3 != 0);
                    model.retain(|item| item % 3 != 0);
                }
                2 => {
                    pool.clear(list);
                    *model = (0..word % 70).collect();
                    *list = pool.list(model);
                }
                _ => {
                    pool.push(list, word);
                    model.push(word);
                }
            }
            assert_eq!(pool.get(*list), &model[..]);
        }
        for (list, model) in &lists {
            assert_eq!(pool.get(*list), &model[..]);
        }
        assert!(pool.items.len() < 20_000, "{}", pool.items.len());
    }
}
