//! Derivations whose output paths are known only after the build, or whose inputs' are: what this farm can do with them,
//! how their outputs are named, and which derivation is built in their place once all inputs are there.
//!
//! Asks the destination store; sends nothing to machines and writes no rows.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::Context;
use crate::base::lock::lock;
use crate::db::schema::Features;
use crate::nix::derivation::{Derivation, DrvKind};
use crate::nix::derivation_hash::DrvHashes;
use crate::nix::realisation::{self, OutputId};
use crate::nix::Error;
use crate::store::local::LocalStore;
use crate::sys::kill::KillSwitch;

/// Hashes of derivations that are remembered.
const HASHES_MAX: usize = 200_000;

/// How Nix marks a derivation with inputs that are made by other derivations.
pub const DYNAMIC: &[u8] = b"DrvWithVersion(";

/// What is needed for such derivations, and what is remembered of them.
#[derive(Default)]
pub struct Resolution {
    /// The local Nix has the experimental feature `ca-derivations` on.
    enabled: bool,
    features: Features,
    hashes: Mutex<DrvHashes>,
    building: Mutex<HashSet<Arc<str>>>,
    one_ended: Condvar,
}

/// The right to build a derivation that steps were resolved into; given up when dropped.
pub struct Claim<'a> {
    resolution: &'a Resolution,
    drv: Arc<str>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.resolution.building).remove(&self.drv);
        self.resolution.one_ended.notify_all();
    }
}

impl Resolution {
    pub fn new(enabled: bool, features: Features) -> Resolution {
        Resolution {
            enabled,
            features,
            ..Resolution::default()
        }
    }

    /// Waits until no other step builds what this one was resolved into, and then has the right to. (Such a wait is as long
    /// as the other's run; then its outputs are found.) `None`: the run was ended meanwhile.
    pub fn claim(&self, drv: &Arc<str>, kill: &KillSwitch) -> Option<Claim<'_>> {
        const KILL_CHECK: Duration = Duration::from_millis(200);
        let mut building = lock(&self.building);
        while building.contains(drv) {
            if kill.is_thrown() {
                return None;
            }
            let waited = self.one_ended.wait_timeout(building, KILL_CHECK);
            building = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        building.insert(drv.clone());
        Some(Claim {
            resolution: self,
            drv: drv.clone(),
        })
    }

    /// Why a derivation of this kind cannot be built here; `None` if it can.
    pub fn refusal(&self, drv: &str, kind: DrvKind) -> Option<String> {
        let what = match kind {
            DrvKind::InputAddressed | DrvKind::Fixed => return None,
            DrvKind::Impure => {
                return Some(format!(
                "{drv} is impure: its outputs could be used for nothing else, so it is not built"
            ))
            }
            DrvKind::FloatingCa => "is content-addressed",
            DrvKind::Deferred => "depends on content-addressed derivations",
        };
        if !self.enabled {
            return Some(format!(
                "{drv} {what}, and the experimental feature ca-derivations of the local Nix is off \
                 (or `nix show-config` does not say): add it to experimental-features in nix.conf and restart"
            ));
        }
        if !self.features.nullable_output_paths {
            return Some(format!(
                "{drv} {what}, and the database has no place for an output without a path: \
                 `hydrad init --upgrade-to 84` makes one"
            ));
        }
        None
    }

    /// Whether a step that was resolved gets a row of its own (status 13).
    pub fn has_rows(&self) -> bool {
        self.features.resolved_drv_path
    }

    /// The names of the outputs of such a derivation, in their order.
    ///
    /// # Errors
    /// A message naming the derivation at fault.
    pub fn output_ids(
        &self,
        store: &LocalStore,
        path: &str,
        drv: &Derivation,
    ) -> Result<Vec<OutputId>, String> {
        let mut hashes = lock(&self.hashes);
        if hashes.len() > HASHES_MAX {
            hashes.clear();
        }
        let mut load = |input: &str| {
            let bytes = store
                .read_drv(input)
                .map_err(|error| Error::file("read", std::path::Path::new(input), error))?;
            Derivation::parse(&bytes)
        };
        realisation::output_ids(drv, &mut hashes, &mut load)
            .map_err(|error| format!("cannot name the outputs of {path}: {error}"))
    }
}

impl Context {
    /// Where these outputs are in the destination store, in their order; `None` for one that was not built.
    ///
    /// # Errors
    /// A message when that cannot be found out.
    pub fn realised(&self, ids: &[OutputId]) -> Result<Vec<Option<String>>, String> {
        ids.iter().map(|id| self.dest.realisation(id)).collect()
    }

    /// Name and path of a derivation's outputs, ordered by name, `None` where one is not known yet.
    ///
    /// # Errors
    /// A message when that cannot be found out.
    pub fn outputs_of(
        &self,
        path: &str,
        drv: &Derivation,
    ) -> Result<Vec<(String, Option<String>)>, String> {
        if drv.kind().is_some_and(DrvKind::has_known_output_paths) {
            let known = drv.known_outputs().into_iter();
            return Ok(known.map(|(name, path)| (name, Some(path))).collect());
        }
        let ids = self.resolution.output_ids(&self.store, path, drv)?;
        let paths = self.realised(&ids)?;
        Ok(ids.into_iter().map(|id| id.output).zip(paths).collect())
    }
}
