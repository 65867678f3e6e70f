//! A queue that does not move says so by itself: nothing began to build for a while, though steps are ready and slots free.
//!
//! Ready steps whose machines are all busy are load and not counted. Decides nothing: says one line, and one when it is over.

use std::cmp::Reverse;

use super::action::Level;
use super::{Plan, Timer};
use crate::model::Millis;

/// Looked at so many times within the time after which it is said.
const LOOKS: u64 = 10;
/// System types named in the line.
const TYPES_NAMED: usize = 3;

/// Why the ready steps of a class are not started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wait {
    /// A machine would take them: a cap or an emergency holds them back, or the next turn starts them.
    HeldBack,
    /// Every slot of every machine that could take them is in use.
    AllFull,
    /// The machines that could are set aside, disabled or have no slots.
    NoneTakes,
    NoMachine,
    MachinesUnknown,
    /// Nothing is started at all, for a reason that is known.
    Held,
    DatabaseBehind,
    Stopping,
}

impl Wait {
    pub const ALL: [Wait; 8] = [
        Wait::HeldBack,
        Wait::AllFull,
        Wait::NoneTakes,
        Wait::NoMachine,
        Wait::MachinesUnknown,
        Wait::Held,
        Wait::DatabaseBehind,
        Wait::Stopping,
    ];

    /// A word for metrics and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Wait::HeldBack => "held_back",
            Wait::AllFull => "all_full",
            Wait::NoneTakes => "none_takes",
            Wait::NoMachine => "no_machine",
            Wait::MachinesUnknown => "machines_unknown",
            Wait::Held => "held",
            Wait::DatabaseBehind => "database_behind",
            Wait::Stopping => "stopping",
        }
    }
}

/// A standstill that was reported and goes on.
#[derive(Clone, PartialEq, Debug)]
pub struct Stall {
    /// Since when nothing has begun to build.
    pub since: Millis,
    /// The line in the log.
    pub text: Box<str>,
}

/// See the module.
#[derive(Default)]
pub struct Standstill {
    /// Builds begun since it was last looked at.
    moved: bool,
    /// Since when something could have been started and was not.
    since: Option<Millis>,
    /// Not looked at before then; a timer is set for that time.
    look_at: Millis,
    pub stall: Option<Stall>,
    /// Stalls reported ever.
    pub count: u64,
}

impl Plan {
    /// A machine has begun to build. A start alone counts for nothing: a machine that is down is tried again and again.
    pub(super) fn moves(&mut self) {
        self.standstill.moved = true;
    }

    /// At the end of each turn.
    pub(super) fn watch_standstill(&mut self) {
        let warning = self.settings.stall_warning_ms;
        if warning == 0 || std::mem::take(&mut self.standstill.moved) || self.stopped {
            return self.standstill_over();
        }
        if self.index.runnable_steps == 0 {
            // The last step that is ready may be the one a faulty machine is tried with.
            if self.standstill.since.is_some() && !self.machines.on_trial() {
                self.standstill_over();
            }
            return;
        }
        if self.now < self.standstill.look_at {
            return;
        }
        let Some(why) = self.standstill_reason() else {
            return self.standstill_over();
        };
        let since = *self.standstill.since.get_or_insert(self.now);
        if self.now < since + warning {
            return self.look_again_in((since + warning).since(self.now));
        }
        if self.standstill.stall.is_none() {
            let text = format!(
                "nothing has begun to build for {}s, although steps are ready ({}) and slots are free ({}): {why}",
                self.now.since(since) / 1000,
                self.index.runnable_steps,
                self.machines.free_slots(),
            );
            self.say(Level::Warn, text.clone());
            self.standstill.count += 1;
            self.standstill.stall = Some(Stall {
                since,
                text: text.into(),
            });
        }
    }

    fn look_again_in(&mut self, delay_ms: u64) {
        let at = self.now + delay_ms;
        self.standstill.look_at = at;
        self.timers.push(Reverse((at, Timer::Standstill)));
    }

    fn standstill_over(&mut self) {
        self.standstill.since = None;
        let (at, soon) = (
            self.standstill.look_at,
            self.settings.stall_warning_ms.div_ceil(LOOKS),
        );
        if soon > 0 && self.index.runnable_steps > 0 && (at <= self.now || at > self.now + soon) {
            self.look_again_in(soon);
        }
        if let Some(stall) = self.standstill.stall.take() {
            let text = format!(
                "the queue moves again, after {}s",
                self.now.since(stall.since) / 1000
            );
            self.say(Level::Info, text);
        }
    }

    /// Why the ready steps of a class are not started.
    pub(super) fn wait_of(&self, class: u32) -> Wait {
        if self.stopped {
            Wait::Stopping
        } else if !self.machines.known {
            Wait::MachinesUnknown
        } else if !self.machines.supports(class) {
            Wait::NoMachine
        } else if !self.machines.covers(class) {
            Wait::NoneTakes
        } else if !self.holds.is_empty() {
            Wait::Held
        } else if !self.writer_keeps_up() {
            Wait::DatabaseBehind
        } else if self.machines.takes(class) {
            Wait::HeldBack
        } else {
            Wait::AllFull
        }
    }

    /// `None` if all that is ready waits for busy machines, which is no fault.
    fn standstill_reason(&self) -> Option<String> {
        let classes = self.index.classes.iter().enumerate();
        let mut held: Vec<(u32, u32, Wait)> = classes
            .filter(|(_, class)| class.runnable > 0)
            .map(|(number, class)| (class.runnable, number as u32, self.wait_of(number as u32)))
            .filter(|(.., wait)| *wait != Wait::AllFull)
            .collect();
        held.sort_unstable_by_key(|&(steps, number, _)| (Reverse(steps), number));
        let mut parts: Vec<String> = held
            .iter()
            .take(TYPES_NAMED)
            .map(|&(steps, number, wait)| {
                let name = &self.index.classes[number as usize].system_type;
                format!("{name} ({steps}): {}", self.wait_text(number, wait))
            })
            .collect();
        if held.len() > TYPES_NAMED {
            parts.push(format!("and {} other types", held.len() - TYPES_NAMED));
        }
        (!held.is_empty()).then(|| parts.join("; "))
    }

    fn wait_text(&self, class: u32, wait: Wait) -> String {
        match wait {
            Wait::HeldBack => "held back by max_running_steps or by an emergency".into(),
            Wait::AllFull => "all machines for it are busy".into(),
            Wait::NoneTakes => self.why_none_takes(self.now, class),
            Wait::NoMachine => "no machine supports that".into(),
            Wait::MachinesUnknown => "the list of machines has not been read yet".into(),
            Wait::Held => {
                let whys: Vec<&str> = self.holds.values().map(|held| &*held.why).collect();
                format!("nothing is started: {}", whys.join(", "))
            }
            Wait::DatabaseBehind => format!("the database is {} records behind", self.unwritten()),
            Wait::Stopping => "nothing new is started any more".into(),
        }
    }
}
