//! A synthetic queue: a layered random graph of derivations, made up from a seed as it is asked for.
//!
//! Knows what every derivation needs and how it will fare; keeps nothing per derivation but what is given here.

use crate::base::random::mix;
use crate::model::{BuildId, BuildStatus, JobsetId, MachineId};
use crate::plan::event::{MachineSpec, QueuedBuild, StepSpec};

pub const JOBSETS: u32 = 12;
/// Steps that many others depend on, per layer and realm.
const POPULAR: u64 = 24;
/// Large queues fall into parts that have little in common, as jobsets of different branches do.
const REALMS: u32 = 8;

/// How a derivation fares, whatever the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Good,
    /// Fails for good with this status.
    Fails {
        status: BuildStatus,
        can_cache: bool,
    },
    /// Fails this often in a way that another try may cure.
    Transient(u32),
    /// Its derivation is gone when it is inspected.
    Collected,
    /// Its derivation is gone when it is started.
    CollectedLate,
    Unreadable,
    /// No machine has what it asks for.
    Unsupported,
    /// Was there before.
    Valid,
}

/// See the module.
pub struct Queue {
    seed: u64,
    pub steps: u32,
    /// Steps per layer, and per realm of a layer.
    layer: u32,
    realm: u32,
    /// Parent positions are a permutation `position * stride + offset` of the same realm in the next layer.
    stride: u64,
    unstride: u64,
    pub machines: Vec<MachineSpec>,
    faults: f64,
    /// Top-level step by build id less one.
    pub builds: Vec<u32>,
}

impl Queue {
    pub fn new(seed: u64, steps: u32, machines: u32, slots: u32, faults: f64) -> Queue {
        let steps = steps.max(1);
        let layers = (f64::from(steps).log2() as u32 + 1).min(24);
        let realms = if steps > super::LARGE { REALMS } else { 1 };
        let realm = steps.div_ceil(layers * realms);
        let layer = realm * realms;
        let layers = steps.div_ceil(layer);
        let (mut stride, mut unstride) = (1, 1);
        // A stride that divides nothing, and its inverse modulo the layer's size.
        for candidate in (u64::from(realm) * 5 / 8).max(1)..u64::from(realm) {
            if let Some(inverse) = inverse(candidate, u64::from(realm)) {
                (stride, unstride) = (candidate, inverse);
                break;
            }
        }
        let mut queue = Queue {
            seed,
            steps,
            layer,
            realm,
            stride,
            unstride,
            machines: Vec::new(),
            faults,
            builds: Vec::new(),
        };
        queue.machines = (0..machines.max(1))
            .map(|at| queue.machine(at, slots.max(1)))
            .collect();
        let last_layer = (layers - 1) * layer;
        for step in 0..steps {
            let top =
                step >= last_layer || queue.parent(step).is_none() || queue.hash(step, 1) % 16 == 0;
            if top {
                queue.builds.push(step);
                // The same derivation is often the job of two jobsets.
                if queue.hash(step, 2) % 8 == 0 {
                    queue.builds.push(step);
                }
            }
        }
        queue
    }

    fn hash(&self, step: u32, salt: u64) -> u64 {
        mix(self.seed ^ mix(u64::from(step) << 8 | salt))
    }

    fn part(&self, step: u32, salt: u64) -> f64 {
        (self.hash(step, salt) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn machine(&self, at: u32, slots: u32) -> MachineSpec {
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|&word| word.into())
                .collect::<Vec<Box<str>>>()
        };
        let systems = match at % 10 {
            0..=6 => words(&["x86_64-linux", "i686-linux"]),
            7 | 8 => words(&["aarch64-linux"]),
            _ => words(&["x86_64-darwin", "aarch64-darwin"]),
        };
        let (supported, mandatory) = match (at % 7, at) {
            (2, _) => (words(&["kvm", "nixos-test"]), words(&[])),
            (4, _) => (words(&["big-parallel"]), words(&["big-parallel"])),
            (6, _) => (words(&["kvm", "benchmark"]), words(&["local"])),
            (_, _) => (words(&["kvm", "big-parallel"]), words(&[])),
        };
        MachineSpec {
            id: MachineId(at),
            name: format!("machine-{at}").into(),
            systems,
            slots,
            speed_factor: [1.0, 1.0, 1.5, 2.0][(self.hash(at, 90) % 4) as usize],
            supported_features: supported,
            mandatory_features: mandatory,
            enabled: true,
        }
    }

    /// Full path of a step's derivation; as long as real ones are.
    pub fn drv(&self, step: u32) -> String {
        const DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
        let mut path = String::with_capacity(80);
        path.push_str("/nix/store/");
        let words = [self.hash(step, 3), self.hash(step, 4), self.hash(step, 5)];
        for at in 0..32 {
            let digit = words[at / 12] >> (at % 12 * 5) & 31;
            path.push(DIGITS[digit as usize] as char);
        }
        path.push_str("-package-with-a-name-");
        path.push_str(&step.to_string());
        path.push_str(".drv");
        path
    }

    /// The step of a derivation that this queue made.
    pub fn step_of(&self, drv: &str) -> Option<u32> {
        let name = drv.strip_suffix(".drv")?;
        let step = name.rsplit('-').next()?.parse().ok()?;
        (step < self.steps).then_some(step)
    }

    /// The step of the next layer that certainly depends on this one.
    fn parent(&self, step: u32) -> Option<u32> {
        let (layer, position) = (step / self.layer, step % self.realm);
        let realm = u64::from(self.realm);
        let parent = (u64::from(position) * self.stride + self.hash(layer, 6) % realm) % realm;
        let parent = step - position + self.layer + parent as u32;
        (parent < self.steps).then_some(parent)
    }

    /// The step whose parent this one is.
    fn child(&self, step: u32) -> Option<u32> {
        let (layer, position) = (step / self.layer, step % self.realm);
        let below = layer.checked_sub(1)?;
        let realm = u64::from(self.realm);
        let offset = self.hash(below, 6) % realm;
        let child = (u64::from(position) + realm - offset) % realm * self.unstride % realm;
        Some(step - position - self.layer + child as u32)
    }

    /// What a step depends on: about seven steps of lower layers, without duplicates.
    pub fn inputs(&self, step: u32) -> Vec<u32> {
        let Some(child) = self.child(step) else {
            return Vec::new();
        };
        let mut inputs = vec![child];
        let (layers, position) = (u64::from(step / self.layer), u64::from(step % self.realm));
        let realm = u64::from(self.realm);
        // The first step of this realm in the lowest layer.
        let base = u64::from(step % self.layer) - position;
        let at =
            |layer: u64, position: u64| base + layer * u64::from(self.layer) + position % realm;
        for nth in 0..self.hash(step, 7) % 14 {
            let word = self.hash(step, 20 + nth);
            let (how, word) = (word % 512, word / 512);
            let input = match how {
                // From anywhere, in a small queue.
                0 if self.layer == self.realm => word % (layers * u64::from(self.layer)),
                0..=30 => at(word % layers, word >> 32),
                // A compiler or the like.
                31..=280 => at(word % layers, (word >> 32) % POPULAR),
                // Nearby in the layer below.
                _ => at(layers - 1, position + word % 256),
            };
            inputs.push(input as u32);
        }
        inputs.sort_unstable();
        inputs.dedup();
        inputs
    }

    pub fn spec(&self, step: u32) -> StepSpec {
        // What some machine has, so that it can be built.
        let machine = &self.machines[(self.hash(step, 8) % self.machines.len() as u64) as usize];
        let word = self.hash(step, 9);
        let local = machine
            .mandatory_features
            .iter()
            .any(|feature| &**feature == "local");
        let mut features: Vec<Box<str>> = match word % 12 {
            0 => machine.supported_features.iter().take(1).cloned().collect(),
            1 => machine.supported_features.clone(),
            _ => Vec::new(),
        };
        features.extend(
            machine
                .mandatory_features
                .iter()
                .filter(|feature| &***feature != "local")
                .cloned(),
        );
        features.sort_unstable();
        features.dedup();
        let mut platform = machine.systems[(word >> 8) as usize % machine.systems.len()].clone();
        if (word >> 16) % 50 == 0 {
            platform = "builtin".into();
        }
        if self.fate(step) == Fate::Unsupported {
            platform = "riscv64-linux".into();
        }
        StepSpec {
            platform,
            required_features: features,
            prefer_local: local || (word >> 24) % 40 == 0,
            inputs: self
                .inputs(step)
                .into_iter()
                .map(|input| self.drv(input))
                .collect(),
        }
    }

    pub fn fate(&self, step: u32) -> Fate {
        if self.part(step, 10) >= self.faults {
            return Fate::Good;
        }
        match self.hash(step, 11) % 16 {
            0 => Fate::Fails {
                status: BuildStatus::Failed,
                can_cache: true,
            },
            1 => Fate::Fails {
                status: BuildStatus::TimedOut,
                can_cache: false,
            },
            2 => Fate::Fails {
                status: BuildStatus::NarSizeLimitExceeded,
                can_cache: false,
            },
            3 => Fate::Fails {
                status: BuildStatus::NotDeterministic,
                can_cache: true,
            },
            4 => Fate::Transient(1_000_000),
            5 => Fate::Collected,
            6 => Fate::CollectedLate,
            7 => Fate::Unreadable,
            8 => Fate::Unsupported,
            9..=11 => Fate::Valid,
            n => Fate::Transient(n as u32 - 11),
        }
    }

    /// Seconds the build takes at speed 1.
    pub fn secs(&self, step: u32) -> u64 {
        let word = self.hash(step, 12);
        match word % 16 {
            0 => 600 + word / 16 % 3_000,
            _ => 10 + word / 16 % 300,
        }
    }

    pub fn step_of_build(&self, id: BuildId) -> Option<u32> {
        self.builds
            .get(usize::try_from(id.0).ok()?.checked_sub(1)?)
            .copied()
    }

    /// The row of a build; each jobset has its realm, and a derivation's second build is of another jobset.
    pub fn row(&self, id: BuildId) -> Option<QueuedBuild> {
        let step = self.step_of_build(id)?;
        let first = id.0 == 1 || self.builds[id.0 as usize - 2] != step;
        let part = if self.layer > self.realm {
            step % self.layer / self.realm
        } else {
            step / 40
        };
        let jobset = if first {
            part % REALMS
        } else {
            REALMS + part % (JOBSETS - REALMS)
        };
        let word = mix(self.seed ^ (id.0 as u64) << 20);
        Some(QueuedBuild {
            id,
            jobset: JobsetId(1 + jobset as i32),
            drv: self.drv(step).into(),
            max_silent_secs: [0, 3_600, 7_200][(word % 3) as usize],
            timeout_secs: [36_000, 0, 72_000][(word / 4 % 3) as usize],
            global_priority: if word % 200 == 0 {
                1 + (word % 5) as i32
            } else {
                0
            },
            local_priority: if word / 256 % 8 == 0 { 10 } else { 100 },
        })
    }

    pub fn shares(&self, jobset: JobsetId) -> u32 {
        1 + (self.hash(jobset.0 as u32, 13) % 200) as u32
    }
}

/// The inverse of `a` modulo `m`, if there is one.
fn inverse(a: u64, m: u64) -> Option<u64> {
    let (mut old, mut new) = ((a as i128, 1i128), (m as i128, 0i128));
    while new.0 != 0 {
        let quotient = old.0 / new.0;
        (old, new) = (new, (old.0 - quotient * new.0, old.1 - quotient * new.1));
    }
    (old.0 == 1).then(|| old.1.rem_euclid(m as i128) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_wanted_by_a_build_and_inputs_lie_below() {
        for (seed, steps) in [(1, 1), (2, 7), (3, 40), (4, 1_000), (5, 4_321)] {
            let queue = Queue::new(seed, steps, 3, 2, 0.0);
            let mut wanted = vec![false; steps as usize];
            for &step in &queue.builds {
                wanted[step as usize] = true;
            }
            for step in (0..steps).rev() {
                assert!(
                    wanted[step as usize],
                    "seed {seed}: nobody wants step {step} of {steps}"
                );
                for input in queue.inputs(step) {
                    assert!(input < step);
                    wanted[input as usize] = true;
                }
                assert_eq!(queue.step_of(&queue.drv(step)), Some(step));
            }
        }
    }
}
