//! Other processes.

/// Whether a process is there and has not ended (one that ended and was not waited for has).
pub fn is_alive(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The name in parentheses may contain anything; the state follows the last one.
        Ok(stat) => !matches!(
            stat.rsplit(')')
                .next()
                .and_then(|rest| rest.trim().chars().next()),
            Some('Z' | 'X') | None
        ),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_child_is_not_alive_before_it_is_waited_for() {
        assert!(is_alive(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().expect("true");
        while is_alive(child.id()) {
            std::thread::yield_now();
        }
        assert!(child.wait().expect("waited").success());
    }
}
