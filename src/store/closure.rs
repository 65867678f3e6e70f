//! Closures in order: references before referrers. Knows no store; whoever calls knows what refers to what.

use std::collections::HashSet;
use std::sync::Arc;

use super::local::PathMeta;

/// A closure that grows path by path.
#[derive(Default)]
pub struct Closure {
    ordered: Vec<Arc<PathMeta>>,
    seen: HashSet<Arc<str>>,
}

impl Closure {
    /// Adds a path and all it refers to, asking `meta` for each once.
    ///
    /// # Errors
    /// As `meta`.
    pub fn add<E>(
        &mut self,
        path: &str,
        mut meta: impl FnMut(&str) -> Result<Arc<PathMeta>, E>,
    ) -> Result<(), E> {
        if self.seen.contains(path) {
            return Ok(());
        }
        // Depth first without recursion: a path is put out once all it refers to is.
        let first = meta(path)?;
        self.seen.insert(first.path.clone());
        let mut stack: Vec<(Arc<PathMeta>, usize)> = vec![(first, 0)];
        while let Some((top, next)) = stack.last_mut() {
            match top.references.get(*next) {
                Some(reference) => {
                    *next += 1;
                    let reference = reference.clone();
                    if self.seen.insert(reference.clone()) {
                        let found = meta(&reference)?;
                        stack.push((found, 0));
                    }
                }
                None => self.ordered.extend(stack.pop().map(|(top, _)| top)),
            }
        }
        Ok(())
    }

    pub fn paths(self) -> Vec<Arc<PathMeta>> {
        self.ordered
    }
}
