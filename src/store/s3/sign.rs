//! AWS Signature Version 4 for one request, in its `Authorization` header: pure, given the time.
//!
//! Knows how a request is written down to be signed and how its address is encoded. Does not know HTTP or where
//! credentials come from. The header, not the address, carries the signature and the session token: addresses end up
//! in logs.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::credentials::Credentials;
use crate::base::text::percent_encoded;
use crate::nix::hash::{hex_encode, sha256, Sha256Hash};

/// A request to be signed. `headers` are all that are signed, names in lower case; `host` is among them.
pub struct Request<'a> {
    pub method: &'a str,
    /// As [`encode_path`] made it.
    pub path: &'a str,
    /// As [`encode_query`] made it; empty for none.
    pub query: &'a str,
    pub headers: &'a [(&'a str, String)],
    pub payload: Sha256Hash,
}

/// The value of the `authorization` header. `timestamp` is also in the header `x-amz-date`.
pub fn authorization(
    request: &Request<'_>,
    credentials: &Credentials,
    region: &str,
    timestamp: &str,
) -> String {
    let mut headers: Vec<&(&str, String)> = request.headers.iter().collect();
    headers.sort();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let mut canonical = format!("{}\n{}\n{}\n", request.method, request.path, request.query);
    for (name, value) in headers {
        canonical.push_str(&format!("{name}:{}\n", value.trim()));
    }
    canonical.push_str(&format!("\n{names}\n{}", hex_encode(&request.payload)));

    let day = &timestamp[..8];
    let scope = format!("{day}/{region}/s3/aws4_request");
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{timestamp}\n{scope}\n{}",
        hex_encode(&sha256(canonical.as_bytes()))
    );
    let secret = format!("AWS4{}", credentials.secret_access_key);
    let key = [day, region, "s3", "aws4_request"]
        .iter()
        .fold(secret.into_bytes(), |key, part| {
            hmac(&key, part.as_bytes()).to_vec()
        });
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={}",
        credentials.access_key_id,
        hex_encode(&hmac(&key, to_sign.as_bytes()))
    )
}

fn hmac(key: &[u8], data: &[u8]) -> Sha256Hash {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("BUG: a HMAC key may have any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

/// A path as S3 wants it in address and signature: everything but letters, digits and `-._~/` is percent-encoded.
pub fn encode_path(path: &str) -> String {
    percent_encoded(path, true)
}

/// A query as S3 wants it: sorted, encoded, an absent value written as an empty one.
pub fn encode_query(pairs: &[(&str, &str)]) -> String {
    let mut pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| {
            format!(
                "{}={}",
                percent_encoded(name, false),
                percent_encoded(value, false)
            )
        })
        .collect();
    pairs.sort();
    pairs.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dates::timestamp;

    /// The examples in AWS's documentation of Signature Version 4 for S3 ("Examples: Signature Calculations").
    #[test]
    fn the_published_examples() {
        let credentials = Credentials::fixed(
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            None,
        );
        let now = timestamp(1_369_353_600);
        assert_eq!(now, "20130524T000000Z");
        let check = |method,
                     path,
                     query: &[(&str, &str)],
                     extra: &[(&'static str, &str)],
                     body: &[u8],
                     want: &str| {
            let payload = sha256(body);
            let mut headers = vec![
                ("host", "examplebucket.s3.amazonaws.com".to_owned()),
                ("x-amz-content-sha256", hex_encode(&payload)),
                ("x-amz-date", now.clone()),
            ];
            headers.extend(
                extra
                    .iter()
                    .map(|(name, value)| (*name, (*value).to_owned())),
            );
            let request = Request {
                method,
                path: &encode_path(path),
                query: &encode_query(query),
                headers: &headers,
                payload,
            };
            let value = authorization(&request, &credentials, "us-east-1", &now);
            assert!(
                value.ends_with(&format!("Signature={want}")),
                "{path}: {value}"
            );
        };
        check(
            "GET",
            "/test.txt",
            &[],
            &[("range", "bytes=0-9")],
            b"",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        );
        check(
            "PUT",
            "/test$file.text",
            &[],
            &[
                ("date", "Fri, 24 May 2013 00:00:00 GMT"),
                ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ],
            b"Welcome to Amazon S3.",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        );
        check(
            "GET",
            "/",
            &[("lifecycle", "")],
            &[],
            b"",
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        );
        check(
            "GET",
            "/",
            &[("prefix", "J"), ("max-keys", "2")],
            &[],
            b"",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        );
    }

    #[test]
    fn addresses() {
        assert_eq!(
            encode_path("/realisations/sha256:ab!out.doi"),
            "/realisations/sha256%3Aab%21out.doi"
        );
        assert_eq!(
            encode_query(&[("uploads", ""), ("a b", "c/d")]),
            "a%20b=c%2Fd&uploads="
        );
    }
}
