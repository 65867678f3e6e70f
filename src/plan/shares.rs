//! Jobsets: their share of the machines' time, how many of their steps run and may run, and sets of jobsets.
//!
//! Exact accounting: machine seconds by start second within the scheduling window, and their sum. Does not
//! know steps or builds.
//!
//! **Caps.** A step may start if one of its jobsets has room: neither it nor its project has as many running steps as its cap
//! allows. The step counts for one jobset, the one among those with room that has used least of its share, until its run has
//! ended; a jobset without room lends it neither room nor share. So what a capped jobset wants together with another one
//! can still run, on the other one's account. Without a cap nothing of this costs anything.

use std::cmp::Ordering;
use std::collections::VecDeque;

use hashbrown::HashTable;

use super::event::{Cap, Repeats};
use crate::base::hash::FixedMap;
use crate::model::{JobsetId, UnixSecs};

/// The jobset of steps that have none: it comes last at equal global priority.
pub const NO_JOBSET: u32 = 0;
/// Hydra's share of a step without jobset.
const NO_JOBSET_SHARE: f64 = 1e9;
/// The project of a jobset whose name is not known yet.
const NO_PROJECT: u32 = u32::MAX;
/// The set without members.
pub const EMPTY_SET: u32 = 0;

pub struct Jobset {
    pub id: JobsetId,
    pub name: Box<str>,
    pub shares: u32,
    announced: bool,
    /// Start second and machine seconds, all within the window, each second once, ascending. What is added lies near
    /// the end, and on a busy machine its second is mostly there already.
    used: VecDeque<(UnixSecs, u64)>,
    /// The sum of `used`.
    pub seconds: u64,
    /// `seconds / shares`.
    pub share_used: f64,
    /// Steps that run on its account.
    pub running: u32,
    /// So many may.
    pub cap: Option<u32>,
    /// Its project, by number.
    project: u32,
}

/// Jobsets with the same first part of the name.
struct Project {
    name: Box<str>,
    running: u32,
    cap: Option<u32>,
}

fn is_reached(running: u32, cap: Option<u32>) -> bool {
    cap.is_some_and(|cap| running >= cap)
}

impl Jobset {
    /// Returns the share used.
    fn reckon(&mut self) -> f64 {
        self.share_used = self.seconds as f64 / f64::from(self.shares.max(1));
        self.share_used
    }

    fn add(&mut self, start: UnixSecs, seconds: u64) {
        if seconds > 0 {
            match self.find(start) {
                Ok(at) => self.used[at].1 += seconds,
                Err(at) => self.used.insert(at, (start, seconds)),
            }
            self.seconds += seconds;
        }
    }

    /// Where a start second is, or would be.
    fn find(&self, start: UnixSecs) -> Result<usize, usize> {
        // On a busy jobset nearly every second is there: its place is soon after where it would be if all were.
        let back = self
            .used
            .back()
            .map_or(0, |&(last, _)| last.saturating_sub(start));
        let back = usize::try_from(back).unwrap_or(0);
        let mut low = self.used.len().saturating_sub(back.saturating_add(1));
        let mut step = 1;
        while self
            .used
            .get(low + step)
            .is_some_and(|&(at, _)| at <= start)
        {
            low += step;
            step *= 2;
        }
        let mut high = (low + step).min(self.used.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.used[middle].0.cmp(&start) {
                Ordering::Equal => return Ok(middle),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// True if something was forgotten.
    fn prune(&mut self, before: UnixSecs) -> bool {
        let mut changed = false;
        while let Some(&(start, seconds)) = self.used.front() {
            if start > before {
                break;
            }
            self.used.pop_front();
            self.seconds -= seconds;
            changed = true;
        }
        changed
    }
}

struct Set {
    members: Box<[u32]>,
    /// A bit for each member, by its number modulo 64.
    mask: u64,
    /// No two members can have the same bit: all numbers are below 64.
    exact: bool,
    refs: u32,
}

/// All jobsets ever announced, and the sets of them that steps belong to.
pub struct Jobsets {
    jobsets: Vec<Jobset>,
    /// Of each jobset, again: read for every head of every heap.
    shares_used: Vec<f64>,
    /// Of each jobset: it or its project has reached its cap.
    full: Vec<bool>,
    /// How many of these are true.
    full_count: u32,
    projects: Vec<Project>,
    caps: Vec<Cap>,
    repeats: Vec<Repeats>,
    by_id: FixedMap<i32, u32>,
    sets: Vec<Set>,
    sets_free: Vec<u32>,
    by_members: HashTable<u32>,
    pruned_at: UnixSecs,
    window_secs: i64,
}

impl Jobsets {
    pub fn new(window_secs: u32) -> Jobsets {
        let none = Jobset {
            id: JobsetId(0),
            name: "".into(),
            shares: 1,
            announced: false,
            used: VecDeque::new(),
            seconds: 0,
            share_used: NO_JOBSET_SHARE,
            running: 0,
            cap: None,
            project: NO_PROJECT,
        };
        Jobsets {
            jobsets: vec![none],
            shares_used: vec![NO_JOBSET_SHARE],
            full: vec![false],
            full_count: 0,
            projects: Vec::new(),
            caps: Vec::new(),
            repeats: Vec::new(),
            by_id: FixedMap::default(),
            sets: vec![Set {
                members: Box::default(),
                mask: 0,
                exact: true,
                refs: 1,
            }],
            sets_free: Vec::new(),
            by_members: HashTable::new(),
            pruned_at: UnixSecs::MIN,
            window_secs: i64::from(window_secs),
        }
    }

    /// All but the pseudo-jobset.
    pub fn all(&self) -> &[Jobset] {
        &self.jobsets[1..]
    }

    pub fn share_used(&self, jobset: u32) -> f64 {
        self.shares_used[jobset as usize]
    }

    /// Whether a jobset or its project has reached its cap.
    pub fn is_full(&self, jobset: u32) -> bool {
        self.full[jobset as usize]
    }

    pub fn any_full(&self) -> bool {
        self.full_count > 0
    }

    /// Every jobset of the set has reached its cap.
    pub fn is_held(&self, set: u32) -> bool {
        let members = self.members(set);
        !members.is_empty() && members.iter().all(|&jobset| self.is_full(jobset))
    }

    /// The cap that holds a jobset: whose it is and how many steps it allows.
    pub fn reached_cap(&self, jobset: u32) -> Option<(&str, u32)> {
        let jobset = &self.jobsets[jobset as usize];
        if let Some(cap) = jobset
            .cap
            .filter(|_| is_reached(jobset.running, jobset.cap))
        {
            return Some((&jobset.name, cap));
        }
        let project = self.projects.get(jobset.project as usize)?;
        let cap = project.cap?;
        is_reached(project.running, project.cap).then_some((&*project.name, cap))
    }

    /// The lowest share used of a set's members, of those with room if there are any.
    pub fn lowest_share(&self, set: u32) -> f64 {
        self.payer(set).map_or(NO_JOBSET_SHARE, |jobset| {
            self.jobsets[jobset as usize].share_used
        })
    }

    /// The lowest share used of a set's members, with room or without.
    pub fn lowest_share_of_all(&self, set: u32) -> f64 {
        let shares = self
            .members(set)
            .iter()
            .map(|&jobset| self.share_used(jobset));
        shares.min_by(f64::total_cmp).unwrap_or(NO_JOBSET_SHARE)
    }

    /// On whose account a step of these jobsets would run now.
    fn payer(&self, set: u32) -> Option<u32> {
        let by_share = |a: &u32, b: &u32| self.share_used(*a).total_cmp(&self.share_used(*b));
        let members = || self.members(set).iter().copied();
        members()
            .filter(|&jobset| !self.is_full(jobset))
            .min_by(by_share)
            .or_else(|| members().min_by(by_share))
    }

    /// A step of these jobsets starts. Returns the jobset on whose account it runs.
    pub fn occupy(&mut self, set: u32) -> u32 {
        let payer = self.payer(set).unwrap_or(NO_JOBSET);
        self.count_run(payer, 1);
        payer
    }

    /// A step that ran on this jobset's account has ended.
    pub fn vacate(&mut self, payer: u32) {
        self.count_run(payer, u32::MAX);
    }

    /// `by`: 1, or `u32::MAX` for one less.
    fn count_run(&mut self, payer: u32, by: u32) {
        let jobset = &mut self.jobsets[payer as usize];
        jobset.running = jobset.running.wrapping_add(by);
        let project = jobset.project;
        let Some(slot) = self.projects.get_mut(project as usize) else {
            return;
        };
        let before = is_reached(slot.running, slot.cap);
        slot.running = slot.running.wrapping_add(by);
        if before == is_reached(slot.running, slot.cap) {
            self.refresh_full(payer);
            return;
        }
        for number in 1..self.jobsets.len() as u32 {
            if self.jobsets[number as usize].project == project {
                self.refresh_full(number);
            }
        }
    }

    fn refresh_full(&mut self, number: u32) {
        let full = number != NO_JOBSET && self.reached_cap(number).is_some();
        let old = std::mem::replace(&mut self.full[number as usize], full);
        self.full_count = self.full_count + u32::from(full) - u32::from(old);
    }

    /// Takes the caps as configured now.
    pub fn set_caps(&mut self, caps: &[Cap]) {
        if self.caps != caps {
            self.caps = caps.to_vec();
            self.apply_caps();
        }
    }

    pub fn set_repeats(&mut self, repeats: &[Repeats]) {
        self.repeats = repeats.to_vec();
    }

    /// How often a step that these jobsets want is built again: as often as the one that wants it most often.
    pub fn repeats(&self, set: u32) -> u32 {
        if self.repeats.is_empty() {
            return 0;
        }
        let times = |&jobset: &u32| {
            let name = self.jobsets[jobset as usize].name.split_once(':');
            let own = |r: &&Repeats| name == Some((&*r.project, &*r.jobset));
            self.repeats.iter().rev().find(own).map(|r| r.times)
        };
        let all = self.members(set).iter().filter_map(times);
        all.max().unwrap_or(0)
    }

    fn apply_caps(&mut self) {
        for project in &mut self.projects {
            let own = |cap: &&Cap| cap.jobset.is_none() && cap.project == project.name;
            project.cap = self.caps.iter().rev().find(own).map(|cap| cap.steps);
        }
        for jobset in &mut self.jobsets[1..] {
            let own = |cap: &&Cap| {
                let name = jobset.name.split_once(':');
                name.is_some_and(|(project, name)| {
                    *cap.project == *project && cap.jobset.as_deref() == Some(name)
                })
            };
            jobset.cap = self.caps.iter().rev().find(own).map(|cap| cap.steps);
        }
        for number in 1..self.jobsets.len() as u32 {
            self.refresh_full(number);
        }
    }

    /// A jobset has its name: it belongs to that project, with what runs on its account.
    fn join_project(&mut self, number: u32) {
        let name = &self.jobsets[number as usize].name;
        let project = name.split(':').next().unwrap_or(name);
        let at = match self.projects.iter().position(|p| &*p.name == project) {
            Some(at) => at,
            None => {
                self.projects.push(Project {
                    name: project.into(),
                    running: 0,
                    cap: None,
                });
                self.projects.len() - 1
            }
        };
        let jobset = &mut self.jobsets[number as usize];
        let old = std::mem::replace(&mut jobset.project, at as u32);
        if old as usize != at {
            if let Some(old) = self.projects.get_mut(old as usize) {
                old.running -= jobset.running;
            }
            self.projects[at].running += jobset.running;
        }
        self.apply_caps();
    }

    /// The dense number of a jobset; one that was not announced gets one share.
    pub fn number(&mut self, id: JobsetId) -> u32 {
        if let Some(&number) = self.by_id.get(&id.0) {
            return number;
        }
        let number = self.jobsets.len() as u32;
        self.jobsets.push(Jobset {
            id,
            name: format!("#{id}").into(),
            shares: 1,
            announced: false,
            used: VecDeque::new(),
            seconds: 0,
            share_used: 0.0,
            running: 0,
            cap: None,
            project: NO_PROJECT,
        });
        self.shares_used.push(0.0);
        self.full.push(false);
        self.by_id.insert(id.0, number);
        number
    }

    /// Announces a jobset with the machine time it used. Said again, name and shares are taken and the history is
    /// not counted twice.
    pub fn announce(
        &mut self,
        id: JobsetId,
        name: Box<str>,
        shares: u32,
        history: &[(UnixSecs, u32)],
        now: UnixSecs,
    ) {
        let number = self.number(id);
        let before = now - self.window_secs;
        let jobset = &mut self.jobsets[number as usize];
        let renamed = jobset.name != name;
        jobset.name = name;
        jobset.shares = shares;
        if !jobset.announced {
            jobset.announced = true;
            for &(start, seconds) in history {
                if start > before {
                    jobset.add(start.min(now), u64::from(seconds));
                }
            }
        }
        self.shares_used[number as usize] = jobset.reckon();
        if renamed {
            self.join_project(number);
        }
    }

    pub fn set_shares(&mut self, id: JobsetId, shares: u32) {
        let number = self.number(id);
        let jobset = &mut self.jobsets[number as usize];
        jobset.shares = shares;
        self.shares_used[number as usize] = jobset.reckon();
    }

    pub fn set_window(&mut self, window_secs: u32) {
        self.window_secs = i64::from(window_secs);
        self.pruned_at = UnixSecs::MIN;
    }

    /// Forgets what lies before the window; at most once a second.
    pub fn prune(&mut self, now: UnixSecs) {
        if now == self.pruned_at {
            return;
        }
        self.pruned_at = now;
        let before = now - self.window_secs;
        for (jobset, share) in self.jobsets.iter_mut().zip(&mut self.shares_used).skip(1) {
            if jobset.prune(before) {
                *share = jobset.reckon();
            }
        }
    }

    /// A step of these jobsets used a machine for `seconds`: an equal part for each, rounded down.
    pub fn charge(&mut self, set: u32, start: UnixSecs, seconds: u64, now: UnixSecs) {
        let members = &self.sets[set as usize].members;
        if members.is_empty() {
            return;
        }
        let each = seconds / members.len() as u64;
        // A builder's clock may be ahead; what lies in the future would stay longer than the window.
        let start = start.min(now);
        if start <= now - self.window_secs {
            return;
        }
        for &jobset in members.iter() {
            let slot = &mut self.jobsets[jobset as usize];
            slot.add(start, each);
            self.shares_used[jobset as usize] = slot.reckon();
        }
    }

    pub fn members(&self, set: u32) -> &[u32] {
        &self.sets[set as usize].members
    }

    /// The union of two sets, with a reference for the caller; `None` if it is `a` itself.
    #[inline]
    pub fn union(&mut self, a: u32, b: u32) -> Option<u32> {
        if a == b || b == EMPTY_SET {
            return None;
        }
        self.union_of_different(a, b)
    }

    fn union_of_different(&mut self, a: u32, b: u32) -> Option<u32> {
        let (mine, theirs) = (&self.sets[a as usize], &self.sets[b as usize]);
        // Mostly the bits tell.
        let within = theirs.mask & !mine.mask == 0;
        if within && mine.exact && theirs.exact {
            return None;
        }
        let (mine, theirs) = (&mine.members, &theirs.members);
        let has = |jobset: &u32| mine.binary_search(jobset).is_ok();
        if within && theirs.iter().all(has) {
            return None;
        }
        if a == EMPTY_SET {
            self.keep(b);
            return Some(b);
        }
        let mut all: Vec<u32> = mine.iter().chain(theirs.iter()).copied().collect();
        all.sort_unstable();
        all.dedup();
        Some(self.set_of(all))
    }

    /// The set with one member, with a reference for the caller.
    pub fn single(&mut self, jobset: u32) -> u32 {
        self.set_of(vec![jobset])
    }

    fn set_of(&mut self, members: Vec<u32>) -> u32 {
        let hash = hash_members(&members);
        if let Some(&set) = self
            .by_members
            .find(hash, |&set| *self.sets[set as usize].members == *members)
        {
            self.keep(set);
            return set;
        }
        let bits = members.iter().map(|jobset| 1u64 << (jobset % 64));
        let set = Set {
            mask: bits.fold(0, |mask, bit| mask | bit),
            exact: members.iter().all(|&jobset| jobset < 64),
            members: members.into(),
            refs: 1,
        };
        let number = match self.sets_free.pop() {
            Some(number) => {
                self.sets[number as usize] = set;
                number
            }
            None => {
                self.sets.push(set);
                self.sets.len() as u32 - 1
            }
        };
        let sets = &self.sets;
        self.by_members.insert_unique(hash, number, |&set| {
            hash_members(&sets[set as usize].members)
        });
        number
    }

    pub fn keep(&mut self, set: u32) {
        if set != EMPTY_SET {
            self.sets[set as usize].refs += 1;
        }
    }

    /// Gives a reference back; a set without references is forgotten.
    pub fn release(&mut self, set: u32) {
        if set == EMPTY_SET {
            return;
        }
        let slot = &mut self.sets[set as usize];
        assert!(slot.refs > 0, "BUG: a set of jobsets released too often");
        slot.refs -= 1;
        if slot.refs == 0 {
            let members = std::mem::take(&mut slot.members);
            match self
                .by_members
                .find_entry(hash_members(&members), |&other| other == set)
            {
                Ok(entry) => {
                    entry.remove();
                }
                Err(_) => panic!("BUG: a set of jobsets is not in its table"),
            }
            self.sets_free.push(set);
        }
    }

    /// For the invariants: as many steps run on each jobset's account as the caller counted.
    pub fn check_running(&self, counted: &std::collections::BTreeMap<u32, u32>) {
        for (number, jobset) in self.jobsets.iter().enumerate() {
            let counted = counted.get(&(number as u32)).copied().unwrap_or(0);
            assert_eq!(jobset.running, counted, "BUG: steps of {}", jobset.name);
        }
    }

    /// For the invariants: every sum is right, and references are as counted by the caller.
    pub fn check(&self, refs: &std::collections::BTreeMap<u32, u32>) {
        for (number, jobset) in self.jobsets.iter().enumerate().skip(1) {
            let full = self.reached_cap(number as u32).is_some();
            assert_eq!(self.full[number], full, "BUG: room of {}", jobset.name);
        }
        let full = self.full.iter().filter(|full| **full).count();
        assert_eq!(self.full_count as usize, full, "BUG: jobsets without room");
        for (number, project) in self.projects.iter().enumerate() {
            let own = self
                .jobsets
                .iter()
                .skip(1)
                .filter(|j| j.project == number as u32);
            let running: u32 = own.map(|jobset| jobset.running).sum();
            assert_eq!(project.running, running, "BUG: steps of {}", project.name);
        }
        for (number, jobset) in self.jobsets.iter().enumerate() {
            assert!(
                jobset.used.iter().is_sorted_by(|a, b| a.0 < b.0),
                "BUG: seconds of {}",
                jobset.name
            );
            assert_eq!(
                jobset.share_used, self.shares_used[number],
                "BUG: share of {}",
                jobset.name
            );
            assert_eq!(
                jobset.seconds,
                jobset.used.iter().map(|used| used.1).sum::<u64>(),
                "BUG: seconds of {} drifted",
                jobset.name
            );
        }
        for (number, set) in self.sets.iter().enumerate().skip(1) {
            let counted = refs.get(&(number as u32)).copied().unwrap_or(0);
            assert_eq!(
                set.refs, counted,
                "BUG: references to the set {number} {:?}",
                set.members
            );
        }
    }
}

fn hash_members(members: &[u32]) -> u64 {
    use std::hash::Hasher;
    let mut hasher = crate::base::hash::FixedHasher::default();
    for &jobset in members {
        hasher.write_u32(jobset);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_window_moves_without_drift() {
        let mut jobsets = Jobsets::new(100);
        jobsets.announce(
            JobsetId(7),
            "p:j".into(),
            10,
            &[(-500, 50), (950, 30), (950, 20), (2_000, 1)],
            1_000,
        );
        let number = jobsets.number(JobsetId(7));
        assert_eq!(
            jobsets.all()[0].seconds,
            51,
            "too old is left out, equal starts add up"
        );
        let set = jobsets.single(number);
        jobsets.charge(set, 990, 9, 1_000);
        assert_eq!(jobsets.all()[0].seconds, 60);
        assert_eq!(jobsets.all()[0].share_used, 6.0);
        jobsets.prune(1_050);
        assert_eq!(jobsets.all()[0].seconds, 10);
        jobsets.prune(1_089);
        assert_eq!(jobsets.all()[0].seconds, 10);
        jobsets.prune(1_090);
        assert_eq!(jobsets.all()[0].seconds, 1);
        jobsets.prune(1_100);
        assert_eq!(jobsets.all()[0].seconds, 0);
        jobsets.check(&BTreeMap::from([(set, 1)]));
    }

    #[test]
    fn uses_in_any_order_add_up() {
        let mut random = crate::base::random::Random::new(9);
        for density in [1, 2, 50] {
            let mut jobsets = Jobsets::new(500);
            let number = jobsets.number(JobsetId(1));
            let set = jobsets.single(number);
            let mut model = BTreeMap::new();
            for now in (1_000..4_000).step_by(density) {
                let (start, secs) = (now - random.below(400) as i64, random.below(9));
                jobsets.prune(now);
                jobsets.charge(set, start, secs, now);
                *model.entry(start).or_insert(0) += secs;
                model.retain(|&start, _| start > now - 500);
                assert_eq!(jobsets.all()[0].seconds, model.values().sum::<u64>());
            }
            jobsets.check(&BTreeMap::from([(set, 1)]));
        }
    }

    #[test]
    fn a_step_may_run_as_long_as_one_of_its_jobsets_has_room() {
        let mut jobsets = Jobsets::new(100);
        let caps = |text: &str| -> Vec<Cap> {
            let cap = |word: &str| {
                let parts: Vec<&str> = word.split(':').collect();
                let (steps, names) = parts.split_last().unwrap();
                Cap {
                    project: names[0].into(),
                    jobset: names.get(1).map(|&name| name.into()),
                    steps: steps.parse().unwrap(),
                }
            };
            text.split_whitespace().map(cap).collect()
        };
        jobsets.set_caps(&caps("p:a:1 p:2 q:0"));
        let mut number = |id: i32, name: &str| {
            jobsets.announce(JobsetId(id), name.into(), 1, &[], 0);
            jobsets.number(JobsetId(id))
        };
        let (a, b, q, r) = (
            number(1, "p:a"),
            number(2, "p:b"),
            number(3, "q:x"),
            number(4, "r:x"),
        );
        let [a, b, q, r] = [a, b, q, r].map(|number| (number, jobsets.single(number)));
        assert!(jobsets.is_full(q.0) && !jobsets.is_held(a.1) && jobsets.is_held(q.1));
        assert_eq!(jobsets.occupy(a.1), a.0);
        assert_eq!(jobsets.reached_cap(a.0), Some(("p:a", 1)));
        // The jobset's cap is reached, the project's is not: another jobset of it lends its room.
        let both = jobsets.union(a.1, b.1).unwrap();
        assert!(jobsets.is_held(a.1) && !jobsets.is_held(both));
        assert_eq!(jobsets.occupy(both), b.0);
        assert_eq!(jobsets.reached_cap(b.0), Some(("p", 2)));
        let wide = jobsets.union(both, r.1).unwrap();
        assert!(jobsets.is_held(both) && !jobsets.is_held(wide));
        assert_eq!(jobsets.occupy(wide), r.0);
        // An emergency does not ask for room.
        assert_eq!(jobsets.occupy(q.1), q.0);
        jobsets.vacate(b.0);
        assert!(jobsets.is_held(a.1) && !jobsets.is_held(b.1));
        jobsets.set_caps(&[]);
        assert!(!jobsets.any_full());
        jobsets.set_caps(&caps("p:1"));
        assert!(jobsets.is_full(a.0) && jobsets.is_full(b.0));
        let refs = BTreeMap::from([a, b, q, r].map(|(_, set)| (set, 1)));
        jobsets.check(&refs.into_iter().chain([(both, 1), (wide, 1)]).collect());
    }

    #[test]
    fn a_charge_is_divided_among_the_jobsets() {
        let mut jobsets = Jobsets::new(100);
        let (a, b) = (jobsets.number(JobsetId(1)), jobsets.number(JobsetId(2)));
        let (one, two) = (jobsets.single(a), jobsets.single(b));
        let both = jobsets.union(one, two).unwrap();
        assert_eq!(jobsets.union(both, two), None);
        jobsets.charge(both, 10, 7, 10);
        assert_eq!(
            jobsets
                .all()
                .iter()
                .map(|jobset| jobset.seconds)
                .collect::<Vec<_>>(),
            [3, 3]
        );
        for set in [one, two, both] {
            jobsets.release(set);
        }
        jobsets.check(&BTreeMap::new());
        assert_eq!(jobsets.lowest_share(EMPTY_SET), 1e9);
    }
}
