//! Outputs whose paths are known only after the build: how Nix names them, how it records where they are (a
//! *realisation*), and what becomes of a derivation once the paths of all its inputs are known (it is *resolved*).
//!
//! Pure: where realisations lie and where derivations come from is for others.

use std::fmt;

use super::derivation::{Derivation, DrvKind};
use super::derivation_hash::{masked_hash, DrvHashes};
use super::hash::{hex_decode, hex_encode, nix32_encode, sha256, Sha256Hash};
use super::store_path::{
    base_name, check_base_name, drv_name, hash_part, output_path, text_path, StoreDir,
};
use super::{excerpt, Error};

/// A realisation at most, bytes, when it is read from a cache.
pub const REALISATION_BYTES_MAX: u64 = 1 << 20;

/// The name of an output: the hash of its derivation, which stays the same however the derivation's inputs were made,
/// and the output's name. As text: `sha256:<64 hex digits>!out`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OutputId {
    pub hash: Sha256Hash,
    pub output: String,
}

impl fmt::Display for OutputId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}!{}", hex_encode(&self.hash), self.output)
    }
}

impl OutputId {
    /// # Errors
    /// When the text is no such name.
    pub fn parse(text: &str) -> Result<OutputId, Error> {
        let parts = text
            .strip_prefix("sha256:")
            .and_then(|rest| rest.split_once('!'))
            .filter(|(_, output)| !output.is_empty());
        let Some((hash, output)) = parts else {
            return Err(Error::Hash {
                text: excerpt(text.as_bytes()),
                why: "an output's name is sha256:HEX!NAME",
            });
        };
        Ok(OutputId {
            hash: hex_decode(hash)?,
            output: output.to_owned(),
        })
    }
}

/// Where an output is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Realisation {
    pub id: OutputId,
    /// Base name of its path.
    pub out_path: String,
    pub signatures: Vec<String>,
}

impl Realisation {
    /// As both protocols and caches have it. What other realisations it rests on is left out, as Hydra does when it
    /// registers one.
    pub fn json(&self) -> String {
        let mut text = self.fingerprint();
        text.pop();
        let signatures = serde_json::json!(self.signatures);
        format!("{text},\"signatures\":{signatures}}}")
    }

    /// What a signature of it signs: the same without the signatures.
    pub fn fingerprint(&self) -> String {
        let id = serde_json::json!(self.id.to_string());
        let out_path = serde_json::json!(self.out_path);
        format!("{{\"dependentRealisations\":{{}},\"id\":{id},\"outPath\":{out_path}}}")
    }

    /// Reads one. A path that is no base name of a store path is refused.
    ///
    /// # Errors
    /// When it is not JSON of that shape.
    pub fn parse(json: &str) -> Result<Realisation, Error> {
        let bad = || Error::Attribute {
            attribute: "realisation",
            why: format!("'{}' has no id and outPath", excerpt(json.as_bytes())),
        };
        let value: serde_json::Value = serde_json::from_str(json).map_err(|_| bad())?;
        let text = |key: &str| value[key].as_str().ok_or_else(bad);
        let out_path = text("outPath")?;
        check_base_name(out_path)?;
        let signatures = value["signatures"].as_array().into_iter().flatten();
        Ok(Realisation {
            id: OutputId::parse(text("id")?)?,
            out_path: out_path.to_owned(),
            signatures: signatures
                .filter_map(|signature| signature.as_str().map(str::to_owned))
                .collect(),
        })
    }
}

/// The names of a derivation's outputs, in their order.
///
/// # Errors
/// As [`masked_hash`].
pub fn output_ids(
    drv: &Derivation,
    known: &mut DrvHashes,
    load: &mut dyn FnMut(&str) -> Result<Derivation, Error>,
) -> Result<Vec<OutputId>, Error> {
    let hash = masked_hash(drv, known, load)?;
    let id = |output: &String| OutputId {
        hash,
        output: output.clone(),
    };
    Ok(drv.outputs.keys().map(id).collect())
}

/// What stands in a derivation for the path of another one's output that is not known yet.
pub fn placeholder(drv_path: &str, output: &str) -> String {
    let name = drv_name(drv_path).unwrap_or_default();
    let of_output = match output {
        "out" => name.to_owned(),
        output => format!("{name}-{output}"),
    };
    let text = format!("nix-upstream-output:{}:{of_output}", hash_part(drv_path));
    format!("/{}", nix32_encode(&sha256(text.as_bytes())))
}

/// A derivation without input derivations, and its own path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    pub path: String,
    pub drv: Derivation,
}

/// Puts the paths of all input derivations' outputs, given as derivation, output and path, into a derivation. What was
/// deferred gets its output paths.
///
/// # Errors
/// When `drv_path` is no path of a derivation.
pub fn resolve<'a>(
    store_dir: &StoreDir,
    drv_path: &str,
    drv: &Derivation,
    inputs: impl Iterator<Item = (&'a str, &'a str, &'a str)>,
) -> Result<Resolved, Error> {
    let name = drv_name(drv_path).ok_or_else(|| Error::StorePath {
        path: drv_path.to_owned(),
        why: "it does not end in .drv",
    })?;
    let mut resolved = drv.clone();
    resolved.input_drvs.clear();
    let mut rewrites = Vec::new();
    for (input, output, path) in inputs {
        rewrites.push((placeholder(input, output), path));
        resolved.input_srcs.push(path.to_owned());
    }
    resolved.input_srcs.sort_unstable();
    resolved.input_srcs.dedup();
    let rewrite = |text: &[u8]| -> Vec<u8> {
        let mut text = text.to_owned();
        for (from, to) in &rewrites {
            text = replaced(&text, from.as_bytes(), to.as_bytes());
        }
        text
    };
    resolved.builder = rewrite(&drv.builder);
    resolved.args = drv.args.iter().map(|arg| rewrite(arg)).collect();
    resolved.env = drv
        .env
        .iter()
        .map(|(key, value)| (rewrite(key), rewrite(value)))
        .collect();
    if drv.kind() == Some(DrvKind::Deferred) {
        let none = &mut |path: &str| {
            Err(Error::StorePath {
                path: path.to_owned(),
                why: "a resolved derivation has no input derivations",
            })
        };
        let hash = masked_hash(&resolved, &mut DrvHashes::new(), none)?;
        for (output, fields) in &mut resolved.outputs {
            let path = output_path(store_dir, name, output, &hash);
            resolved
                .env
                .insert(output.clone().into_bytes(), path.clone().into_bytes());
            fields.path = Some(path);
        }
    }
    let text = sha256(&resolved.to_aterm());
    let path = text_path(
        store_dir,
        &format!("{name}.drv"),
        &text,
        &resolved.references(),
    );
    Ok(Resolved {
        path,
        drv: resolved,
    })
}

/// All occurrences replaced, from left to right.
fn replaced(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        if rest.starts_with(from) {
            out.extend_from_slice(to);
            rest = &rest[from.len()..];
        } else {
            out.push(rest[0]);
            rest = &rest[1..];
        }
    }
    out
}

/// The key of a realisation in a cache.
pub fn realisation_key(id: &OutputId) -> String {
    format!("realisations/{id}.doi")
}

/// The realisation of an output at this path.
pub fn realised(id: OutputId, path: &str) -> Realisation {
    Realisation {
        id,
        out_path: base_name(path).to_owned(),
        signatures: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff!dev";
    const PATH: &str = "0a000000000000000000000000000000-top-dev";

    #[test]
    fn what_is_written_is_read() {
        let mut one = realised(OutputId::parse(ID).unwrap(), &format!("/nix/store/{PATH}"));
        assert_eq!(one.id.to_string(), ID);
        assert_eq!(
            one.fingerprint(),
            format!("{{\"dependentRealisations\":{{}},\"id\":\"{ID}\",\"outPath\":\"{PATH}\"}}")
        );
        assert_eq!(Realisation::parse(&one.json()).unwrap(), one);
        one.signatures.push("key:abc=".to_owned());
        assert!(one.json().ends_with(",\"signatures\":[\"key:abc=\"]}"));
        assert_eq!(Realisation::parse(&one.json()).unwrap(), one);
    }

    #[test]
    fn what_is_no_realisation_is_refused() {
        for text in [
            "",
            "null",
            "{}",
            "[1]",
            &format!("{{\"id\":\"{ID}\",\"outPath\":\"../{PATH}\"}}"),
            &format!("{{\"id\":\"{ID}\",\"outPath\":7}}"),
            &format!("{{\"id\":\"sha256:00!out\",\"outPath\":\"{PATH}\"}}"),
            &format!("{{\"id\":\"{}\",\"outPath\":\"{PATH}\"}}", &ID[..72]),
        ] {
            assert!(Realisation::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_take_the_place_of_placeholders_everywhere() {
        let input = "/nix/store/0a000000000000000000000000000000-in.drv";
        let mark = placeholder(input, "dev");
        assert_eq!(mark.len(), 53);
        assert_ne!(mark, placeholder(input, "out"));
        let text = format!("Derive([(\"out\",\"\",\"\",\"\")],[(\"{input}\",[\"dev\"])],[],\"any\",\"{mark}/sh\",[\"{mark}{mark}\"],[(\"in\",\"{mark}\"),(\"out\",\"\")])");
        let drv = Derivation::parse(text.as_bytes()).unwrap();
        let path = format!("/nix/store/{PATH}");
        let store = StoreDir::default();
        let top = "/nix/store/0b000000000000000000000000000000-x.drv";
        let inputs = [(input, "dev", path.as_str())];
        let resolved = resolve(&store, top, &drv, inputs.into_iter()).unwrap();
        let drv = &resolved.drv;
        assert_eq!(drv.builder, format!("{path}/sh").into_bytes());
        assert_eq!(drv.args, [format!("{path}{path}").into_bytes()]);
        assert_eq!(drv.env_var("in"), Some(path.as_bytes()));
        assert!(drv.input_drvs.is_empty() && drv.input_srcs == [path]);
        // It was deferred: now it tells where its output will be.
        assert_eq!(drv.kind(), Some(DrvKind::InputAddressed));
        let out = drv.outputs["out"].path.as_deref().unwrap();
        assert_eq!(drv.env_var("out"), Some(out.as_bytes()));
        assert!(resolved.path.ends_with("-x.drv") && resolved.path != top);
    }
}
