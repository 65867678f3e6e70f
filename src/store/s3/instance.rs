//! Credentials of the role of an EC2 instance, from its metadata service (version 2 only: a token is fetched first).

use std::time::Duration;

use ureq::Agent;

use super::credentials::Credentials;
use crate::base::text::clip;
use crate::model::dates;

const SERVICE: &str = "http://169.254.169.254/latest";
/// The service is on this host; elsewhere nobody answers.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: u64 = 1 << 16;

/// # Errors
/// When this is no instance, or it has no role.
pub fn credentials() -> Result<Credentials, String> {
    fetch(SERVICE).map_err(|why| {
        format!(
            "no credentials: neither AWS_ACCESS_KEY_ID nor a profile in ~/.aws/credentials is there, and this is no EC2 \
             instance with a role ({why}); set one of them"
        )
    })
}

fn fetch(service: &str) -> Result<Credentials, String> {
    let agent: Agent = Agent::config_builder()
        .proxy(None)
        .timeout_global(Some(ANSWER_TIME_MAX))
        .build()
        .into();
    let token = text(
        agent
            .put(format!("{service}/api/token"))
            .header("x-aws-ec2-metadata-token-ttl-seconds", "300")
            .send_empty(),
    )?;
    let get = |path: &str| {
        text(
            agent
                .get(format!(
                    "{service}/meta-data/iam/security-credentials/{path}"
                ))
                .header("x-aws-ec2-metadata-token", &token)
                .call(),
        )
    };
    let role = get("")?;
    let role = role.lines().next().unwrap_or("").trim();
    if role.is_empty() {
        return Err("the instance has no role".to_owned());
    }
    parse(&get(role)?)
}

fn text(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<String, String> {
    answer
        .and_then(|mut response| {
            response
                .body_mut()
                .with_config()
                .limit(ANSWER_BYTES_MAX)
                .read_to_string()
        })
        .map_err(|error| error.to_string())
}

fn parse(json: &str) -> Result<Credentials, String> {
    let value: serde_json::Value = serde_json::from_str(json)
        .map_err(|error| format!("not understood: {error}: {}", clip(json, 80)))?;
    let field = |name: &str| value[name].as_str().map(str::to_owned);
    match (field("AccessKeyId"), field("SecretAccessKey")) {
        (Some(id), Some(secret)) => Ok(Credentials {
            expires: field("Expiration").as_deref().and_then(dates::from_iso),
            ..Credentials::fixed(&id, &secret, field("Token"))
        }),
        _ => Err("the instance's role has no credentials".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    #[test]
    fn the_metadata_service_is_asked_with_a_token() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let service = format!(
            "http://{}/latest",
            listener.local_addr().expect("an address")
        );
        let server = std::thread::spawn(move || {
            let mut seen = Vec::new();
            for answer in [
                "TOKEN",
                "farm\n",
                "{\"AccessKeyId\":\"A\",\"SecretAccessKey\":\"s\",\"Token\":\"t\",\"Expiration\":\"2013-05-24T00:00:00Z\"}",
            ] {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut lines = Vec::new();
                for line in BufReader::new(&stream).lines() {
                    match line.expect("a line") {
                        line if line.is_empty() => break,
                        line => lines.push(line.to_lowercase()),
                    }
                }
                seen.push(lines);
                let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", answer.len());
                stream.write_all(format!("{head}{answer}").as_bytes()).expect("sent");
            }
            seen
        });
        let credentials = fetch(&service).expect("credentials");
        let seen = server.join().expect("the server ends");
        assert_eq!(credentials.session_token.as_deref(), Some("t"));
        assert_eq!(credentials.expires, Some(1_369_353_600));
        assert!(seen[0][0].starts_with("put /latest/api/token "), "{seen:?}");
        assert!(
            seen[2][0].contains("/security-credentials/farm "),
            "{seen:?}"
        );
        assert!(
            seen[2].contains(&"x-aws-ec2-metadata-token: token".to_owned()),
            "{seen:?}"
        );
    }
}
