//! Fetches from memory what the next events, answers and starts are about.
//!
//! The graph is far larger than the processor's caches and events come in no order, so nearly every step an event leads
//! to has to be waited for: the run's slot, its step, the list of dependents, each dependent. Here a block of events is
//! walked together, one such stage at a time, so that the processor waits for many of them at once.
//!
//! Decides nothing: without this file the plan would do the same, only slower.

use super::attempt::{Starting, DEPENDENTS_LOOKED_AT};
use super::event::{Event, QuestionId, StepFacts};
use super::graph::BLOCK;
use super::Plan;
use crate::base::interner::Guess;
use crate::base::prefetch;

/// Answers looked at together.
const ANSWERS: usize = 32;
/// Bytes of a step's inputs' paths that are fetched.
const INPUTS_BYTES: usize = 1024;

/// What was found out about the first answers that wait to be digested.
#[derive(Default)]
pub struct Ahead {
    /// How many answers.
    answers: usize,
    /// For each of their inputs, in order.
    guesses: Vec<Guess>,
    /// Those before are used up.
    next: usize,
}

impl Plan {
    /// Digests the next answer, if there is one; returns what it cost.
    pub(super) fn take_next_facts(&mut self) -> Option<i64> {
        if self.ahead.answers == 0 {
            self.look_ahead();
        }
        let (question, facts) = self.facts.pop_front()?;
        self.ahead.answers -= 1;
        let inputs = match &facts {
            StepFacts::Needed(spec) => spec.inputs.len(),
            _ => 0,
        };
        let at = self.ahead.next;
        self.ahead.next += inputs;
        let guesses = std::mem::take(&mut self.ahead.guesses);
        let cost = self.take_facts(question, facts, &guesses[at..at + inputs]);
        self.ahead.guesses = guesses;
        Some(cost)
    }

    /// Looks at the next answers together.
    fn look_ahead(&mut self) {
        let answers = self.facts.len().min(ANSWERS);
        let mut guesses = std::mem::take(&mut self.ahead.guesses);
        guesses.clear();
        let specs = || {
            let facts = self.facts.iter().take(answers);
            facts.filter_map(|(_, facts)| match facts {
                StepFacts::Needed(spec) => Some(spec),
                _ => None,
            })
        };
        let inputs = || specs().flat_map(|spec| spec.inputs.iter());
        let graph = &self.graph;
        specs().for_each(|spec| prefetch::all(spec.inputs.joined().as_bytes(), INPUTS_BYTES));
        let asked = |(question, _): &(QuestionId, _)| self.questions.step_of(*question);
        let steps = self.facts.iter().take(answers).filter_map(asked);
        steps.for_each(|step| graph.fetch(step));
        guesses.extend(inputs().map(|input| graph.names.guess(input)));
        for guess in &mut guesses {
            if let Some(id) = graph.names.guess_id(guess) {
                graph.fetch(id);
            }
        }
        let known = || guesses.iter().filter_map(|guess| guess.id());
        for id in known() {
            graph.names.fetch(id);
            graph.fetch_rdeps_end(id);
        }
        self.ahead = Ahead {
            answers,
            guesses,
            next: 0,
        };
    }

    /// Fetches what the events of a turn are about.
    pub(super) fn fetch_for(&mut self, events: &[Event]) {
        let mut slots = std::mem::take(&mut self.scratch.1);
        slots.clear();
        for event in events {
            let (run, ends) = match event {
                Event::RunPhase { run, .. } => (run, false),
                Event::RunEnded { run, .. } => (run, true),
                _ => continue,
            };
            if let Some(slot) = self.runs.slot_of(*run) {
                self.runs.fetch(slot);
                if ends {
                    slots.push(slot);
                }
            }
        }
        let graph = &self.graph;
        for slot in &mut slots {
            *slot = self.runs.peek(*slot).step;
            graph.fetch(*slot);
        }
        let steps = &slots;
        for &step in steps {
            graph.fetch_rdeps(step);
            self.builds.fetch(graph.step(step).builds);
        }
        steps
            .iter()
            .for_each(|&step| graph.fetch_dependents(step, BLOCK));
        self.scratch.1 = slots;
    }

    /// Fetches what the next questions are about.
    pub(super) fn fetch_questions(&self, at_most: usize) {
        let steps = || self.questions.next().take(at_most);
        for step in steps() {
            self.graph.fetch(step);
            self.graph.names.fetch_place(step);
        }
        steps().for_each(|step| self.graph.names.fetch(step));
    }

    /// Fetches what telling of these starts needs.
    pub(super) fn fetch_starts(&self, starting: &[Starting]) {
        let graph = &self.graph;
        let steps = || starting.iter().map(|start| start.step);
        for step in steps() {
            graph.fetch(step);
            graph.names.fetch_place(step);
        }
        for step in steps() {
            graph.names.fetch(step);
            graph.fetch_rdeps(step);
            self.builds.fetch(graph.step(step).builds);
        }
        steps().for_each(|step| graph.fetch_dependents(step, DEPENDENTS_LOOKED_AT));
    }
}
