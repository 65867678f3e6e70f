//! Strings as dense `u32` ids, with the space of removed strings reused.
//!
//! The bytes lie in pages of 64 KiB, each string behind a small header that names its id. When less than
//! half of the pages' bytes is in use, one page at a time is emptied by moving what lives in it, and used again. So a
//! process that adds and removes for months needs at most about twice what ever lived at a time, and no call is
//! long (except that the table of hashes and the room for the pages double now and then).
//!
//! The table is our own and plain, eight bytes per slot and nothing else, because looking up many strings in a
//! table far larger than the caches is fast only if all the slots are fetched at the same time.
//!
//! Does not know what the strings mean.

use super::hash::hash_str;
use super::{huge, prefetch};

/// Longer strings are refused.
pub const STRING_BYTES_MAX: usize = 4096;

const PAGE_BYTES: usize = 64 * 1024;
const PAGES_MAX: usize = 1 << 16;
/// Before a string: its id (4 bytes) and its length (2 bytes).
const HEADER_BYTES: usize = 6;
const FREE: u32 = u32::MAX;

/// A slot of the table; `id` is `FREE` in an empty one.
#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    id: u32,
}

const EMPTY: Slot = Slot { hash: 0, id: FREE };

/// From hashes to ids: open addressing, linear probing, no tombstones.
#[derive(Default)]
struct Table {
    /// A power of two of them, or none; at most 7 in 10 in use.
    slots: Vec<Slot>,
    used: usize,
}

impl Table {
    fn home(&self, hash: u32) -> usize {
        // Fibonacci hashing: high bits of the product, as many as there are slots.
        let spread = u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (spread >> 32) as usize & self.slots.len().wrapping_sub(1)
    }

    fn find(&self, hash: u32, is: impl Fn(u32) -> bool) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let mut at = self.home(hash);
        loop {
            let slot = self.slots[at];
            if slot.id == FREE {
                return None;
            }
            if slot.hash == hash && is(slot.id) {
                return Some(slot.id);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    fn insert(&mut self, hash: u32, id: u32) {
        if (self.used + 1) * 10 > self.slots.len() * 7 {
            let slots = (self.slots.len() * 2).max(16);
            let mut grown = Vec::new();
            huge::reserve(&mut grown, slots);
            grown.resize(slots, EMPTY);
            for slot in std::mem::replace(&mut self.slots, grown) {
                if slot.id != FREE {
                    self.put(slot);
                }
            }
        }
        self.put(Slot { hash, id });
        self.used += 1;
    }

    fn put(&mut self, slot: Slot) {
        let mut at = self.home(slot.hash);
        while self.slots[at].id != FREE {
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at] = slot;
    }

    fn remove(&mut self, hash: u32, id: u32) {
        let mask = self.slots.len().wrapping_sub(1);
        let mut hole = self.home(hash);
        while self.slots[hole].id != id {
            assert!(
                self.slots[hole].id != FREE,
                "BUG: removing an id that is not interned"
            );
            hole = (hole + 1) & mask;
        }
        // Those behind that would not be found across the hole move into it.
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let slot = self.slots[at];
            if slot.id == FREE {
                break;
            }
            let distance = at.wrapping_sub(self.home(slot.hash)) & mask;
            if distance >= (at.wrapping_sub(hole) & mask) {
                self.slots[hole] = slot;
                hole = at;
            }
        }
        self.slots[hole] = EMPTY;
        self.used -= 1;
    }
}

/// Where a string probably is.
#[derive(Clone, Copy, Debug)]
pub struct Guess {
    hash: u32,
    id: u32,
}

impl Guess {
    /// The id, if the string seems to have one.
    pub fn id(self) -> Option<u32> {
        (self.id != FREE).then_some(self.id)
    }
}

#[derive(Default)]
struct Page {
    used_bytes: usize,
    live_bytes: usize,
}

/// Of an id.
#[derive(Clone, Copy)]
struct Entry {
    /// Where the header of the string is among all bytes: page number and offset. `FREE`: the id has no string.
    place: u32,
    hash: u32,
}

/// See the module.
#[derive(Default)]
pub struct Interner {
    table: Table,
    /// By id.
    entries: Vec<Entry>,
    free_ids: Vec<u32>,
    /// Of all pages.
    bytes: Vec<u8>,
    pages: Vec<Page>,
    free_pages: Vec<u32>,
    /// The page that new strings go to.
    open: u32,
    live_bytes: usize,
    /// Where the search for a page to empty goes on.
    cursor: u32,
}

impl Interner {
    /// Number of strings held.
    pub fn len(&self) -> usize {
        self.table.used
    }

    pub fn is_empty(&self) -> bool {
        self.table.used == 0
    }

    /// Every id is below this.
    pub fn ids_end(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Bytes of the pages in use.
    pub fn page_bytes(&self) -> usize {
        (self.pages.len() - self.free_pages.len()) * PAGE_BYTES
    }

    pub fn find(&self, text: &str) -> Option<u32> {
        let hash = hash_str(text) as u32;
        self.table
            .find(hash, |id| self.bytes(id) == text.as_bytes())
    }

    /// The first of three looks for a string, each of which only fetches from memory what the next one needs: many
    /// strings looked for together, look by look, do not wait for each other. The guess is for
    /// [`Interner::intern_guessed`].
    #[inline]
    pub fn guess(&self, text: &str) -> Guess {
        let hash = hash_str(text) as u32;
        prefetch::item(&self.table.slots, self.table.home(hash));
        Guess { hash, id: FREE }
    }

    /// The second look. The id that the string probably has.
    #[inline]
    pub fn guess_id(&self, guess: &mut Guess) -> Option<u32> {
        guess.id = self.table.find(guess.hash, |_| true).unwrap_or(FREE);
        prefetch::item(&self.entries, guess.id as usize);
        (guess.id != FREE).then_some(guess.id)
    }

    /// The third look, also for whoever will read or remove the string of an id in use.
    #[inline]
    pub fn fetch(&self, id: u32) {
        if let Some(entry) = self.entries.get(id as usize) {
            // Most strings are not longer. A free id has no place in the bytes.
            let bytes = self.bytes.get(entry.place as usize..).unwrap_or_default();
            prefetch::all(bytes, 96);
        }
    }

    /// Fetches where the string of an id is kept, for [`Interner::fetch`].
    #[inline]
    pub fn fetch_place(&self, id: u32) {
        prefetch::item(&self.entries, id as usize);
    }

    /// Fetches what else removing a string needs; its place is there already.
    pub fn fetch_slot(&self, id: u32) {
        let home = self.table.home(self.entries[id as usize].hash);
        prefetch::item(&self.table.slots, home);
    }

    /// [`Interner::intern`], given what [`Interner::guess_id`] found a while ago.
    pub fn intern_guessed(&mut self, text: &str, guess: Guess) -> Option<(u32, bool)> {
        // Strings may have come and gone since.
        let entry = self.entries.get(guess.id as usize);
        if let Some(entry) = entry.filter(|entry| entry.place != FREE) {
            if bytes_at(&self.bytes, entry.place) == text.as_bytes() {
                return Some((guess.id, false));
            }
        }
        self.intern_hashed(text, guess.hash)
    }

    /// The id of `text`, and whether it is new. `None` if the string is longer than
    /// [`STRING_BYTES_MAX`] or 4 GiB of strings are held. Ids of removed strings are given out again.
    pub fn intern(&mut self, text: &str) -> Option<(u32, bool)> {
        self.intern_hashed(text, hash_str(text) as u32)
    }

    fn intern_hashed(&mut self, text: &str, hash: u32) -> Option<(u32, bool)> {
        if let Some(id) = self
            .table
            .find(hash, |id| self.bytes(id) == text.as_bytes())
        {
            return Some((id, false));
        }
        if text.len() > STRING_BYTES_MAX {
            return None;
        }
        let place = self.room(HEADER_BYTES + text.len())?;
        let entry = Entry { place, hash };
        let id = match self.free_ids.pop() {
            Some(id) => {
                self.entries[id as usize] = entry;
                id
            }
            None => {
                huge::reserve(&mut self.entries, 1);
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        };
        let size = HEADER_BYTES + text.len();
        let into = &mut self.bytes[place as usize..place as usize + size];
        into[..4].copy_from_slice(&id.to_le_bytes());
        into[4..HEADER_BYTES].copy_from_slice(&(text.len() as u16).to_le_bytes());
        into[HEADER_BYTES..].copy_from_slice(text.as_bytes());
        let page = &mut self.pages[(place >> 16) as usize];
        page.used_bytes += size;
        page.live_bytes += size;
        self.live_bytes += size;
        self.table.insert(hash, id);
        Some((id, true))
    }

    /// The string of an id in use.
    pub fn text(&self, id: u32) -> &str {
        std::str::from_utf8(self.bytes(id))
            .expect("BUG: interned bytes are not the string they were")
    }

    fn bytes(&self, id: u32) -> &[u8] {
        bytes_at(&self.bytes, self.entries[id as usize].place)
    }

    /// Forgets a string; its id and space will be used again.
    pub fn remove(&mut self, id: u32) {
        let size = HEADER_BYTES + self.bytes(id).len();
        let entry = &mut self.entries[id as usize];
        self.table.remove(entry.hash, id);
        let page_no = entry.place >> 16;
        entry.place = FREE;
        self.free_ids.push(id);
        self.live_bytes -= size;
        let page = &mut self.pages[page_no as usize];
        page.live_bytes -= size;
        if page.live_bytes == 0 && page_no != self.open {
            self.empty(page_no);
        } else if self.page_bytes() > 2 * self.live_bytes + 8 * PAGE_BYTES {
            self.move_one_page();
        }
    }

    /// A place for `size` more bytes.
    fn room(&mut self, size: usize) -> Option<u32> {
        let open_full = match self.pages.get(self.open as usize) {
            None => true,
            Some(page) => page.used_bytes + size > PAGE_BYTES,
        };
        if open_full {
            let full = self.open;
            self.open = match self.free_pages.pop() {
                Some(page) => page,
                None if self.pages.len() < PAGES_MAX => {
                    huge::reserve(&mut self.bytes, PAGE_BYTES);
                    self.bytes.resize(self.bytes.len() + PAGE_BYTES, 0);
                    self.pages.push(Page::default());
                    self.pages.len() as u32 - 1
                }
                None => return None,
            };
            if full != self.open && self.pages[full as usize].live_bytes == 0 {
                self.empty(full);
            }
        }
        Some(self.open << 16 | self.pages[self.open as usize].used_bytes as u32)
    }

    fn empty(&mut self, page_no: u32) {
        let page = &mut self.pages[page_no as usize];
        assert!(
            page.live_bytes == 0,
            "BUG: emptying a page with strings in it"
        );
        page.used_bytes = 0;
        self.free_pages.push(page_no);
    }

    /// Moves what lives in one page that is less than half in use.
    fn move_one_page(&mut self) {
        for _ in 0..self.pages.len() {
            self.cursor = (self.cursor + 1) % self.pages.len() as u32;
            let page = &self.pages[self.cursor as usize];
            if self.cursor != self.open && page.live_bytes > 0 && page.live_bytes < PAGE_BYTES / 2 {
                break;
            }
        }
        let from = self.cursor;
        if from == self.open || self.pages[from as usize].live_bytes == 0 {
            return;
        }
        let begin = (from as usize) << 16;
        let end = begin + self.pages[from as usize].used_bytes;
        let mut at = begin;
        while at < end {
            let header = &self.bytes[at..at + HEADER_BYTES];
            let id = u32::from_le_bytes(header[..4].try_into().expect("BUG: four bytes"));
            let len = u16::from_le_bytes([header[4], header[5]]);
            let size = HEADER_BYTES + usize::from(len);
            if self.entries[id as usize].place == at as u32 {
                // There is room: pages are less than half used, and a page number is free if one was before.
                let Some(place) = self.room(size) else {
                    return;
                };
                self.bytes.copy_within(at..at + size, place as usize);
                let to = &mut self.pages[(place >> 16) as usize];
                to.used_bytes += size;
                to.live_bytes += size;
                self.pages[from as usize].live_bytes -= size;
                self.entries[id as usize].place = place;
            }
            at += size;
        }
        self.empty(from);
    }
}

fn bytes_at(bytes: &[u8], place: u32) -> &[u8] {
    assert!(place != FREE, "BUG: a free id has no string");
    let at = place as usize;
    let len = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
    &bytes[at + HEADER_BYTES..at + HEADER_BYTES + len]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;
    use std::collections::BTreeMap;

    #[test]
    fn a_long_life_of_adding_and_removing_stays_small_and_right() {
        let mut random = Random::new(3);
        let mut names = Interner::default();
        let mut model: BTreeMap<u32, String> = BTreeMap::new();
        for round in 0..60_000u64 {
            let text = format!(
                "/nix/store/{:032}-{}.drv",
                random.below(20_000),
                "x".repeat(random.below(60) as usize)
            );
            if model.len() > 3_000 || (round % 3 == 0 && !model.is_empty()) {
                let nth = random.below(model.len() as u64) as usize;
                let (&id, known) = model.iter().nth(nth).unwrap();
                assert_eq!(names.text(id), known);
                names.remove(id);
                model.remove(&id);
            }
            let (id, new) = names.intern(&text).unwrap();
            assert_eq!(
                new,
                model.insert(id, text.clone()).is_none_or(|old| old != text)
            );
            assert_eq!(names.find(&text), Some(id));
        }
        assert_eq!(names.len(), model.len());
        for (&id, text) in &model {
            assert_eq!(names.text(id), text);
            assert_eq!(names.find(text), Some(id));
        }
        let live: usize = model.values().map(|text| text.len() + HEADER_BYTES).sum();
        assert!(
            names.page_bytes() <= 2 * live + 9 * PAGE_BYTES,
            "{} for {live}",
            names.page_bytes()
        );
        assert!(names.ids_end() <= 3_002);
    }

    #[test]
    fn too_long_a_string_is_refused() {
        let mut names = Interner::default();
        assert_eq!(names.intern(&"a".repeat(STRING_BYTES_MAX + 1)), None);
        assert!(names.intern(&"a".repeat(STRING_BYTES_MAX)).is_some());
        assert!(names.intern("").is_some_and(|(_, new)| new));
    }
}
