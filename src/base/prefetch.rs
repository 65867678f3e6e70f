//! Asks the processor to fetch memory that will be needed soon.
//!
//! In a structure far larger than the caches an access takes a hundred times as long as an instruction, and a walk
//! from one place to the next waits for each of them. Whoever knows early where many walks will go fetches all the
//! first places, then all the second ones, and so on: the processor waits for many at the same time.
//!
//! Fetching changes nothing but time. Where we do not know how to ask, nothing is done.

/// The processor fetches so much at a time.
const LINE_BYTES: usize = 64;

#[inline(always)]
fn line(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it reads nothing that the program could see, and cannot fault whatever the address.
    unsafe {
        use core::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{0}]", in(reg) at, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// Fetches one item, or nothing if there is none at that place. Items are at most two lines long.
#[inline(always)]
pub fn item<T>(items: &[T], at: usize) {
    const { assert!(size_of::<T>() <= 2 * LINE_BYTES) };
    if let Some(item) = items.get(at) {
        let first = std::ptr::from_ref(item).cast::<u8>();
        line(first);
        if size_of::<T>() > 8 {
            line(first.wrapping_add(size_of::<T>() - 1));
        }
    }
}

/// Fetches the first `bytes_max` bytes of some items.
#[inline(always)]
pub fn all<T>(items: &[T], bytes_max: usize) {
    let bytes = size_of_val(items).min(bytes_max);
    if bytes > 0 {
        let first = items.as_ptr().cast::<u8>();
        for at in (0..bytes).step_by(LINE_BYTES) {
            line(first.wrapping_add(at));
        }
        line(first.wrapping_add(bytes - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_place_may_be_asked_for() {
        let items = [[1u8; 100]; 3];
        (0..5).for_each(|at| item(&items, at));
        item(&[0u8; 0], usize::MAX);
        all(&items, usize::MAX);
        all(&[0u64; 0], 64);
        assert_eq!(items, [[1u8; 100]; 3]);
    }
}
