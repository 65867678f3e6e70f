//! Webhook: a POST of JSON about each event, signed if there is a secret. hydrad's own; Hydra has no such plugin.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{json, Value};
use sha2::Sha256;

use super::{secret, Call, Failure, Needs, Plugin};
use crate::config::notify::{HeaderValue, Webhook as Block};
use crate::nix::hash::hex_encode;
use crate::notify::document;
use crate::notify::event::{channel_of, Event, EVAL_FINISHED};

/// Dependents described in one document; the others are only listed.
const DEPENDENTS_MAX: usize = 100;

pub struct Webhook {
    block: Block,
    target: String,
    channels: Vec<&'static str>,
}

impl Webhook {
    /// # Errors
    /// A message about an event that does not exist.
    pub fn new(block: Block) -> Result<Webhook, String> {
        let mut channels = Vec::new();
        for name in &block.events {
            // Not for webhooks: it is only there where mails are collected.
            let channel = channel_of(name).filter(|channel| *channel != EVAL_FINISHED);
            channels.push(channel.ok_or_else(|| {
                format!(
                    "webhook `{}`: there is no event `{name}`; there are buildQueued, buildStarted, buildFinished, \
                     cachedBuildQueued, cachedBuildFinished, stepFinished, evalStarted, evalAdded, evalCached, evalFailed, evalErrorChanged",
                    block.name
                )
            })?);
        }
        Ok(Webhook {
            target: format!("Webhook {}", block.name),
            channels,
            block,
        })
    }

    /// What there is to tell; `None`: nothing, or not of this job.
    fn document(&self, call: &Call<'_>) -> Result<Option<Value>, Failure> {
        let base_uri = &call.around.base_uri;
        let wanted = |job: &str| {
            self.block
                .jobs
                .as_ref()
                .is_none_or(|jobs| jobs.matches(job))
        };
        let id = match call.event {
            Event::BuildQueued { build }
            | Event::BuildStarted { build }
            | Event::BuildFinished { build, .. }
            | Event::CachedBuildQueued { build, .. }
            | Event::CachedBuildFinished { build, .. }
            | Event::StepFinished { build, .. } => *build,
            Event::EvalStarted { trace, jobset }
            | Event::EvalFailed { trace, jobset }
            | Event::EvalErrorChanged { trace, jobset } => {
                return Ok(Some(json!({ "trace": trace, "jobsetId": jobset })));
            }
            Event::EvalFinished { .. } => return Ok(None),
            Event::EvalAdded {
                trace,
                jobset,
                eval,
            }
            | Event::EvalCached {
                trace,
                jobset,
                eval,
            } => {
                return Ok(Some(json!({
                    "trace": trace, "jobsetId": jobset, "eval": eval, "url": format!("{base_uri}/eval/{eval}"),
                })));
            }
        };
        let Some(build) = call.build(id)? else {
            return Ok(None);
        };
        let mut told = wanted(&build.job_name());
        let mut document = match call.event {
            Event::BuildFinished { dependents, .. } => {
                let mut document = document::build_finished(&build, &call.results(id)?);
                let mut described = Vec::new();
                for dependent in dependents.iter().take(DEPENDENTS_MAX) {
                    if let Some(build) = call.build(*dependent)? {
                        told |= wanted(&build.job_name());
                        described.push(document::build(&build, base_uri));
                    }
                }
                document["dependents"] = described.into();
                document["dependentIds"] = dependents.clone().into();
                document["url"] = format!("{base_uri}/build/{id}").into();
                document["status"] = build.status.map(document::status_word).into();
                document
            }
            _ => document::build(&build, base_uri),
        };
        match call.event {
            Event::StepFinished { stepnr, log, .. } => {
                document["step"] = (*stepnr).into();
                document["log"] = log.clone().into();
            }
            Event::CachedBuildQueued { eval, .. } | Event::CachedBuildFinished { eval, .. } => {
                document["eval"] = (*eval).into();
            }
            _ => {}
        }
        Ok(told.then_some(document))
    }
}

impl Plugin for Webhook {
    fn target(&self) -> &str {
        &self.target
    }

    fn channels(&self) -> &[&'static str] {
        &self.channels
    }

    fn needs(&self) -> Needs<'_> {
        let headers = self.block.headers.iter();
        let files = headers.filter_map(|(_, value)| match value {
            HeaderValue::File(path) => Some(path.as_path()),
            HeaderValue::Text(_) => None,
        });
        Needs {
            addresses: vec![&self.block.url],
            secrets: files.chain(self.block.secret_file.as_deref()).collect(),
            folders: Vec::new(),
        }
    }

    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure> {
        let Some(mut document) = self.document(call)? else {
            return Ok(());
        };
        let key = format!("hydrad-{}", call.event_id);
        document["event"] = call.event.name().into();
        document["delivery"] = key.as_str().into();
        let body = match &self.block.template {
            Some(template) => document::fill(template, &document),
            None => document,
        }
        .to_string();
        let mut headers = vec![
            ("Content-Type".to_owned(), "application/json".to_owned()),
            ("Idempotency-Key".to_owned(), key),
            ("X-Hydrad-Event".to_owned(), call.event.name().to_owned()),
        ];
        for (name, value) in &self.block.headers {
            let value = match value {
                HeaderValue::Text(text) => text.clone(),
                HeaderValue::File(path) => secret(path)?,
            };
            headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            headers.push((name.clone(), value));
        }
        if let Some(path) = &self.block.secret_file {
            let signature = sign(secret(path)?.as_bytes(), body.as_bytes());
            headers.push((
                "X-Hydrad-Signature-256".to_owned(),
                format!("sha256={signature}"),
            ));
        }
        let time_max = self.block.time_max.unwrap_or(call.around.time_max);
        call.post(&self.block.url, &headers, body.as_bytes(), time_max)
            .map(drop)
    }
}

/// HMAC-SHA256, in hex.
fn sign(secret: &[u8], body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("BUG: any length is a key");
    mac.update(body);
    hex_encode(&mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    #[test]
    fn signatures_are_those_of_rfc_4231() {
        let signature = super::sign(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(
            signature,
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
