//! Ids that cross the border between rooms.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($repr:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $repr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// `Builds.id`.
    BuildId(i32)
);
id!(
    /// `Jobsets.id`.
    JobsetId(i32)
);
id!(
    /// A machine name seen since the process started. The driver gives them out densely from 0
    /// and never uses one again for another name.
    MachineId(u32)
);
id!(
    /// One attempt of a step on a machine. The plan gives them out, rising from 1.
    RunId(u64)
);
id!(
    /// One record for the database writer. The plan gives them out, rising from 1; the writer
    /// says when a ticket is committed. Zero means "before every ticket".
    Ticket(u64)
);
