//! Asking the queue runner at its `status_address`, for when the database is away.

use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

use crate::base::text::percent_encoded;
use crate::config::settings::Address;
use crate::plan::explanation::Subject;

/// An answer comes within this time; the plan itself has ten seconds.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What `hydrad explain --json` says of it, from the page `/explain/...`; and where that was.
///
/// # Errors
/// A message, with the address.
pub fn explain(address: Option<&Address>, subject: &Subject) -> Result<(Value, String), String> {
    let Some(address) = address else {
        return Err("and it serves no pages (status_address = none)".into());
    };
    let base = format!("http://{}", reached(address));
    let page = match subject {
        Subject::Build(id) => format!("build/{id}"),
        Subject::Drv(drv) => format!("drv/{}", percent_encoded(drv.trim_start_matches('/'), true)),
        Subject::Machine(name) => format!("machine/{}", percent_encoded(name, false)),
    };
    let agent: Agent = Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .timeout_global(Some(ANSWER_TIME_MAX))
        .build()
        .into();
    let cannot = |error: &dyn std::fmt::Display| format!("and {base} does not answer: {error}");
    let mut answer = agent
        .get(format!("{base}/explain/{page}"))
        .call()
        .map_err(|error| cannot(&error))?;
    let text = answer
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_to_string()
        .map_err(|error| cannot(&error))?;
    match serde_json::from_str::<Value>(&text) {
        Ok(value) if value.get("text").is_some() => Ok((value, base)),
        _ => Err(cannot(&format!(
            "{} is no answer of hydrad's",
            answer.status()
        ))),
    }
}

/// The address at which a server that listens there is reached from this host.
fn reached(address: &Address) -> Address {
    let host = match address.host.as_str() {
        "0.0.0.0" | "*" | "" => "127.0.0.1",
        "::" => "::1",
        host => host,
    };
    Address {
        host: host.to_owned(),
        port: address.port,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_reached_by_this_hosts_own() {
        for (host, told) in [
            ("0.0.0.0", "127.0.0.1:1"),
            ("::", "[::1]:1"),
            ("farm", "farm:1"),
        ] {
            let address = Address {
                host: host.into(),
                port: 1,
            };
            assert_eq!(reached(&address).to_string(), told);
        }
    }
}
