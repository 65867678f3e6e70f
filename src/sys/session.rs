//! The processes of a session: what a child that leads one has started, and what those have, whatever groups they made.

/// The processes of this session that have not ended.
pub fn members(session: u32) -> Vec<u32> {
    let mut members = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid else { continue };
        if session_of(pid) == Some(session) {
            members.push(pid);
        }
    }
    members
}

/// Sends a signal to all of them, and to those that they start meanwhile; tells how many there were.
pub fn signal(session: u32, signal: i32) -> usize {
    // Whoever is just starting another one is found in the next round.
    const ROUNDS_MAX: usize = 5;
    let mut signalled: Vec<u32> = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let found = members(session);
        let new = found.iter().filter(|pid| !signalled.contains(pid));
        let new: Vec<u32> = new.copied().collect();
        if new.is_empty() {
            break;
        }
        for pid in &new {
            // SAFETY: kill has no memory arguments. The session's leader has not been waited for, so no other session can
            // have its number.
            unsafe { libc::kill(*pid as i32, signal) };
        }
        signalled.extend(new);
    }
    signalled.len()
}

/// `None` also for one that has ended and was not waited for.
fn session_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything. Behind it: state, parent, group, session.
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(session)
}
