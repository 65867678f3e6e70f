//! Room for arrays of many megabytes.
//!
//! What is read in no order in such an array costs two waits: one for the memory, one for the table that says where the
//! page is. With pages of 2 MiB that table is small enough to stay in the processor. The kernel gives such pages only
//! when asked, and only for memory that has not been used yet: so a growing array moves to fresh memory.

/// What is moved at a time.
const MOVED_BYTES: usize = 2 << 20;
/// An array that is full gets so many times its room.
const GROWTH: usize = 4;
/// Below this an array has nothing from it.
const WORTHWHILE_BYTES: usize = 4 << 20;

/// Makes room for `more` items; as `Vec::reserve`, with large pages once there are many.
#[inline]
pub fn reserve<T: Copy>(items: &mut Vec<T>, more: usize) {
    if items.capacity() - items.len() < more {
        grow(items, more);
    }
}

#[cold]
fn grow<T: Copy>(items: &mut Vec<T>, more: usize) {
    let needed = items.len() + more;
    if needed.saturating_mul(size_of::<T>()) < WORTHWHILE_BYTES {
        return items.reserve(more);
    }
    // What is not used costs nothing, and moving costs the more the larger it is.
    let wanted = needed.max(GROWTH * items.capacity());
    let mut grown: Vec<T> = Vec::with_capacity(wanted);
    let bytes = grown.capacity() * size_of::<T>();
    advise(grown.as_mut_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
    let mut old = std::mem::replace(items, grown);
    // Piece by piece, so that the memory is not needed twice.
    for piece in old.chunks_mut((MOVED_BYTES / size_of::<T>()).max(1)) {
        items.extend_from_slice(piece);
        let (at, bytes) = (piece.as_mut_ptr().cast(), size_of_val(piece));
        // Nobody reads the piece again, it is only freed.
        advise(at, bytes, libc::MADV_DONTNEED);
    }
}

/// Tells the kernel something about the whole pages in memory of our own, whose content does not matter any more or
/// yet. Without that all works the same.
fn advise(at: *mut u8, bytes: usize, advice: i32) {
    const PAGE: usize = 4096;
    let skipped = at.align_offset(PAGE);
    let whole = bytes.saturating_sub(skipped) / PAGE * PAGE;
    if skipped < PAGE && whole > 0 {
        // SAFETY: whole pages within one allocation that the caller owns alone and will not read before it has written
        // to it; they stay mapped and writable whatever the advice.
        unsafe { libc::madvise(at.add(skipped).cast(), whole, advice) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_that_moves_keeps_its_items() {
        let mut items: Vec<u64> = Vec::new();
        for item in 0..2_000_000 {
            reserve(&mut items, 1);
            items.push(item);
        }
        reserve(&mut items, 1_000);
        assert!(items.capacity() - items.len() >= 1_000);
        assert!(items.iter().copied().eq(0..2_000_000));
    }
}
