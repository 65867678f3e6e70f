//! The payloads of Hydra's notification channels: decimal ids and texts separated by TAB.

use crate::model::BuildId;

/// What PostgreSQL takes at most in one NOTIFY, bytes.
pub const PAYLOAD_BYTES_MAX: usize = 7_999;

/// `build_finished`: the primary build and those that ended with it. When they do not fit into one
/// payload there are several, each beginning with the primary build.
pub fn build_finished(primary: BuildId, others: &[BuildId]) -> Vec<String> {
    let first = primary.to_string();
    let mut payloads = vec![first.clone()];
    for other in others.iter().filter(|other| **other != primary) {
        let other = other.to_string();
        let last = payloads
            .last_mut()
            .unwrap_or_else(|| unreachable!("BUG: there is a first payload"));
        if last.len() + 1 + other.len() <= PAYLOAD_BYTES_MAX {
            last.push('\t');
            last.push_str(&other);
        } else {
            payloads.push(format!("{first}\t{other}"));
        }
    }
    payloads
}

/// `step_started`.
pub fn step_started(build: BuildId, stepnr: i32) -> String {
    format!("{build}\t{stepnr}")
}

/// `step_finished`; `-` says that there is no log. A path that cannot be sent counts as none.
pub fn step_finished(build: BuildId, stepnr: i32, log: Option<&str>) -> String {
    let log = log
        .filter(|path| !path.is_empty() && !path.contains('\t') && path.len() < 4_096)
        .unwrap_or("-");
    format!("{build}\t{stepnr}\t{log}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s1_long_lists_are_split_and_nothing_is_lost() {
        let ids: Vec<BuildId> = (10_000_000..10_005_000).map(BuildId).collect();
        let payloads = build_finished(ids[0], &ids);
        assert!(payloads.len() > 1);
        let mut seen = vec![ids[0]];
        for payload in &payloads {
            assert!(payload.len() <= PAYLOAD_BYTES_MAX);
            let mut fields = payload
                .split('\t')
                .map(|f| BuildId(f.parse().expect("an id")));
            assert_eq!(fields.next(), Some(ids[0]));
            seen.extend(fields);
        }
        assert_eq!(seen, ids);
    }

    #[test]
    fn small_payloads() {
        assert_eq!(build_finished(BuildId(7), &[]), ["7"]);
        assert_eq!(
            build_finished(BuildId(7), &[BuildId(7), BuildId(9)]),
            ["7\t9"]
        );
        assert_eq!(step_started(BuildId(7), 2), "7\t2");
        assert_eq!(step_finished(BuildId(7), 2, None), "7\t2\t-");
        assert_eq!(step_finished(BuildId(7), 2, Some("/a b")), "7\t2\t/a b");
    }
}
