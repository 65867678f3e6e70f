//! The hash of a derivation "modulo" fixed outputs, from which Nix computes output paths.
//!
//! Output paths that are known beforehand the daemon takes from the `.drv` files; the hash verifies them, and names the
//! outputs whose paths are known only after the build. Does not know where derivations come from: the caller loads them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::derivation::{Derivation, DrvKind, Output};
use super::hash::{hex_encode, sha256, Sha256Hash};
use super::store_path::{drv_name, fixed_output_path, output_path, Ingestion, StoreDir};
use super::Error;

/// Computes what the output paths of an input-addressed or fixed-output derivation have to be
/// and compares. `load` gives the input derivations by path; each is asked for once.
///
/// Errors: [`Error::OutputPath`] for the first difference; [`Error::Attribute`] for a kind of
/// derivation whose paths are not known; whatever `load` returns.
pub fn verify_output_paths(
    store_dir: &StoreDir,
    drv_path: &str,
    drv: &Derivation,
    load: &mut dyn FnMut(&str) -> Result<Derivation, Error>,
) -> Result<(), Error> {
    let name = drv_name(drv_path).ok_or_else(|| Error::StorePath {
        path: drv_path.to_owned(),
        why: "it does not end in .drv",
    })?;
    let expected: Vec<(&String, String)> = match drv.kind() {
        Some(DrvKind::Fixed) => drv
            .outputs
            .iter()
            .map(|(output, fields)| {
                let (ingestion, algorithm) = match fields.hash_algo.strip_prefix("r:") {
                    Some(algorithm) => (Ingestion::Recursive, algorithm),
                    None => (Ingestion::Flat, fields.hash_algo.as_str()),
                };
                let path = fixed_output_path(store_dir, name, ingestion, algorithm, &fields.hash)?;
                Ok((output, path))
            })
            .collect::<Result<_, Error>>()?,
        Some(DrvKind::InputAddressed) => {
            let hash = masked_hash(drv, &mut DrvHashes::new(), load)?;
            drv.outputs
                .keys()
                .map(|output| (output, output_path(store_dir, name, output, &hash)))
                .collect()
        }
        _ => return Err(unknown_paths()),
    };
    for (output, expected) in expected {
        let found = drv.outputs[output].path.clone().unwrap_or_default();
        if found != expected {
            return Err(Error::OutputPath {
                drv: drv_path.to_owned(),
                output: output.clone(),
                expected,
                found,
            });
        }
    }
    Ok(())
}

/// Hashes of derivations by path, with their own output paths in them: what other derivations' hashes are made of.
pub type DrvHashes = HashMap<String, Sha256Hash>;

/// The hash that stands for a derivation, its own output paths blanked: by it Nix names outputs whose paths are known
/// only after the build. `known` is filled with what was found out on the way; `load` gives the input derivations that
/// are not in it.
///
/// # Errors
/// [`Error::Attribute`] for an impure derivation among the inputs; whatever `load` returns.
pub fn masked_hash(
    drv: &Derivation,
    known: &mut DrvHashes,
    load: &mut dyn FnMut(&str) -> Result<Derivation, Error>,
) -> Result<Sha256Hash, Error> {
    hash_inputs(drv, known, load)?;
    Ok(sha256(&rewritten(drv, known, true).to_aterm()))
}

/// Hashes all input derivations, transitively. The walk has its own stack, so a deep graph cannot overflow the
/// thread's.
fn hash_inputs(
    drv: &Derivation,
    hashes: &mut DrvHashes,
    load: &mut dyn FnMut(&str) -> Result<Derivation, Error>,
) -> Result<(), Error> {
    let mut open: HashMap<String, Derivation> = HashMap::new();
    let mut stack: Vec<String> = drv.input_drvs.keys().cloned().collect();
    while let Some(path) = stack.last().cloned() {
        if hashes.contains_key(&path) {
            stack.pop();
            continue;
        }
        if let Some(input) = open.remove(&path) {
            // Its inputs are hashed unless one of them depends on it.
            if input.input_drvs.keys().any(|p| !hashes.contains_key(p)) {
                return Err(Error::StorePath {
                    path,
                    why: "it is its own input",
                });
            }
            let hash = sha256(&rewritten(&input, hashes, false).to_aterm());
            hashes.insert(path, hash);
            stack.pop();
            continue;
        }
        let input = load(&path)?;
        match input.kind() {
            Some(DrvKind::Fixed) => {
                hashes.extend(
                    input
                        .outputs
                        .values()
                        .map(|o| (path.clone(), fixed_hash(o))),
                );
                stack.pop();
            }
            Some(DrvKind::Impure) | None => return Err(unknown_paths()),
            Some(DrvKind::InputAddressed | DrvKind::FloatingCa | DrvKind::Deferred) => {
                let wanted = input.input_drvs.keys();
                stack.extend(wanted.filter(|p| !hashes.contains_key(*p)).cloned());
                open.insert(path, input);
            }
        }
    }
    Ok(())
}

/// A fixed-output derivation counts by what it makes, however it is made.
fn fixed_hash(output: &Output) -> Sha256Hash {
    let Output {
        path,
        hash_algo,
        hash,
    } = output;
    let path = path.as_deref().unwrap_or("");
    sha256(format!("fixed:out:{hash_algo}:{hash}:{path}").as_bytes())
}

/// The derivation with the paths of its inputs replaced by their hashes and, if `masked`, its
/// own output paths blanked.
fn rewritten(drv: &Derivation, inputs: &DrvHashes, masked: bool) -> Derivation {
    // Two input derivations may have one hash: then Nix merges what is wanted of them.
    let mut merged: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, outputs) in &drv.input_drvs {
        merged
            .entry(hex_encode(&inputs[path]))
            .or_default()
            .extend(outputs.iter().cloned());
    }
    let mut copy = drv.clone();
    copy.input_drvs = merged
        .into_iter()
        .map(|(hash, outputs)| (hash, outputs.into_iter().collect()))
        .collect();
    if masked {
        for (name, output) in &mut copy.outputs {
            output.path = None;
            if let Some(value) = copy.env.get_mut(name.as_bytes()) {
                value.clear();
            }
        }
    }
    copy
}

fn unknown_paths() -> Error {
    Error::Attribute {
        attribute: "outputs",
        why: "their paths are known only after the build".to_owned(),
    }
}
