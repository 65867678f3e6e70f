//! A jobset as whoever has to evaluate it sees it.

use super::{JobsetId, UnixSecs};

/// `Jobsets.enabled`, but for 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    Schedule,
    OneShot,
    OneAtATime,
    /// A number that means nothing to Hydra either: never evaluated.
    Unknown(i32),
}

impl Style {
    pub fn from_code(enabled: i32) -> Style {
        match enabled {
            1 => Style::Schedule,
            2 => Style::OneShot,
            3 => Style::OneAtATime,
            code => Style::Unknown(code),
        }
    }
}

/// A jobset as its row has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScheduledJobset {
    pub id: JobsetId,
    pub project: Box<str>,
    pub name: Box<str>,
    /// 0: never.
    pub last_checked: UnixSecs,
    pub trigger: Option<UnixSecs>,
    pub check_interval_secs: i64,
    /// It and its project are.
    pub is_enabled: bool,
    pub style: Style,
}
