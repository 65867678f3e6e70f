//! Operators' orders about machines, as the log hears of them: given, changed, ended, run out; and what a queue loses by
//! them.

use super::action::Level;
use super::event::{MachineOrder, OrderState};
use super::Plan;
use crate::base::text::duration;
use crate::model::Millis;

/// System types named in a line.
const TYPES_NAMED: usize = 5;

impl Plan {
    /// Says which orders have come, changed or gone since it was said last.
    pub(super) fn tell_orders(&mut self) {
        for (at, before) in std::mem::take(&mut self.machines.orders_changed) {
            let Some(machine) = self.machines.get(at) else {
                continue;
            };
            let name = machine.spec.name.clone();
            match (machine.order.clone(), before) {
                (Some(order), before) => {
                    self.say(Level::Info, given(&order, self.now));
                    let takes_nothing_already = before.is_some();
                    let types = self.alone_for(at);
                    if !types.is_empty() && !takes_nothing_already && self.builds.queued > 0 {
                        let text = format!(
                            "‘{name}’ was the last machine that takes steps of {}: they wait until it is enabled again",
                            types.join(", ")
                        );
                        self.say(Level::Warn, text);
                    }
                }
                (None, Some(before)) => {
                    let text = match self.machines.enabled_by(&name) {
                        Some(order) => format!("‘{name}’ was enabled by {}", order.who),
                        None => format!("‘{name}’ takes steps again: {}", over(&before, self.now)),
                    };
                    self.say(Level::Info, text);
                }
                (None, None) => {}
            }
        }
    }

    /// The system types of queued steps that only this machine can be given now, a few at most.
    pub(super) fn alone_for(&self, at: u32) -> Vec<Box<str>> {
        let mut types: Vec<Box<str>> = Vec::new();
        for (number, class) in self.index.classes.iter().enumerate() {
            if class.steps > 0 && self.machines.is_alone_for(at, number as u32) {
                types.push(class.system_type.clone());
            }
        }
        types.sort_unstable();
        types.dedup();
        if types.len() > TYPES_NAMED {
            let more = types.len() - TYPES_NAMED;
            types.truncate(TYPES_NAMED);
            types.push(format!("{more} more").into());
        }
        types
    }
}

fn given(order: &MachineOrder, now: Millis) -> String {
    let end = match order.until {
        Some(until) => format!(
            ", for {}",
            duration(until.saturating_sub(now.secs()).max(0))
        ),
        None => String::new(),
    };
    let reason = match &order.reason {
        Some(reason) => format!(": {}", reason.replace('\n', "; ")),
        None => String::new(),
    };
    format!(
        "‘{}’ was {} by {}{end}{reason}",
        order.machine,
        order.state.word(),
        order.who
    )
}

fn over(order: &MachineOrder, now: Millis) -> String {
    let verb = match order.state {
        OrderState::Disabled => "disable",
        OrderState::Drained | OrderState::Enabled => "drain",
    };
    match order.until {
        Some(until) if until <= now.secs() => {
            format!("the order of {} to {verb} it is over", order.who)
        }
        _ => format!("there is no order of {} to {verb} it any more", order.who),
    }
}
