//! Store URIs as Nix writes them: `scheme://place?name=value&name=value`, values percent-encoded.
//!
//! Knows the syntax alone. Whoever understands a parameter takes it; what is left at the end nobody understood.

use crate::base::text::percent_decoded;

/// A store URI, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreUri {
    /// `file`, `s3`, `ssh`, ...; empty for `auto`, `local`, `daemon` and plain paths.
    pub scheme: String,
    /// Between `://` and `?`: `/var/cache/nix`, `bucket`, `user@host`.
    pub place: String,
    pub params: Params,
}

/// The parameters that nobody has taken yet, in the order they were written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Params(Vec<(String, String)>);

/// What is wrong with a URI.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UriError {
    /// A part after `?` that is no `name=value`.
    #[error("'{0}' is not a parameter; write NAME=VALUE, with '&' between parameters")]
    NotAParameter(String),
    /// A `%` that is not followed by two hexadecimal digits, or bytes that are no text.
    #[error("'{0}' is not percent-encoded text; write %25 for a '%'")]
    Encoding(String),
    /// The same parameter twice, which Nix does not know either.
    #[error("the parameter '{0}' stands there twice")]
    Twice(String),
    /// A value that cannot be.
    #[error("{name}={value}: {why}")]
    Value {
        name: String,
        value: String,
        why: String,
    },
    /// Parameters that nobody took.
    #[error("unknown parameter '{name}'; known are {known}")]
    Unknown { name: String, known: String },
}

impl StoreUri {
    /// # Errors
    /// [`UriError`] for a parameter that is none, or is there twice.
    pub fn parse(text: &str) -> Result<StoreUri, UriError> {
        let (start, query) = match text.split_once('?') {
            Some((start, query)) => (start, query),
            None => (text, ""),
        };
        let (scheme, place) = start.split_once("://").unwrap_or(("", start));
        let mut params: Vec<(String, String)> = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| UriError::NotAParameter(part.to_owned()))?;
            if params.iter().any(|(known, _)| known == name) {
                return Err(UriError::Twice(name.to_owned()));
            }
            params.push((name.to_owned(), percent_decode(value)?));
        }
        Ok(StoreUri {
            scheme: scheme.to_owned(),
            place: percent_decode(place)?,
            params: Params(params),
        })
    }
}

impl Params {
    /// Takes a parameter away; `None` if it is not there.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }

    /// Takes a parameter that is `true` or `false` (Nix also takes `1`, `0`, `yes`, `no`).
    ///
    /// # Errors
    /// For anything else.
    pub fn take_bool(&mut self, name: &str) -> Result<Option<bool>, UriError> {
        self.take_as(name, "write true or false", |value| match value {
            "true" | "1" | "yes" => Some(true),
            "false" | "0" | "no" => Some(false),
            _ => None,
        })
    }

    /// Takes a whole number.
    ///
    /// # Errors
    /// For anything else.
    pub fn take_number<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>, UriError> {
        self.take_as(name, "write a whole number", |value| value.parse().ok())
    }

    /// Takes a parameter and reads it with `parse`; `why` is what a wrong value is told.
    ///
    /// # Errors
    /// When `parse` has no answer.
    pub fn take_as<T>(
        &mut self,
        name: &str,
        why: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, UriError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match parse(&value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(UriError::Value {
                name: name.to_owned(),
                value,
                why: why.to_owned(),
            }),
        }
    }

    /// To be called when everybody has taken what they know.
    ///
    /// # Errors
    /// Names the first parameter that is left.
    pub fn finish(self, known: &[&str]) -> Result<(), UriError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => Err(UriError::Unknown {
                name,
                known: known.join(", "),
            }),
        }
    }
}

fn percent_decode(text: &str) -> Result<String, UriError> {
    percent_decoded(text).map_err(|_| UriError::Encoding(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_and_their_parameters() {
        let mut uri =
            StoreUri::parse("s3://bucket?region=eu-west-1&secret-key=%2Fetc%2Fk%20ey&x=1")
                .expect("a URI");
        assert_eq!((&*uri.scheme, &*uri.place), ("s3", "bucket"));
        assert_eq!(uri.params.take("secret-key").as_deref(), Some("/etc/k ey"));
        assert_eq!(uri.params.take_number::<u8>("x"), Ok(Some(1)));
        assert_eq!(uri.params.take_bool("y"), Ok(None));
        let error = uri.params.finish(&["profile", "x"]).expect_err("left over");
        assert_eq!(
            error.to_string(),
            "unknown parameter 'region'; known are profile, x"
        );
        let plain = StoreUri::parse("daemon").expect("a URI");
        assert_eq!((&*plain.scheme, &*plain.place), ("", "daemon"));
        for wrong in [
            "file:///x?a",
            "file:///x?a=%2",
            "file:///x?a=%ff",
            "s3://b?a=1&a=2",
        ] {
            assert!(StoreUri::parse(wrong).is_err(), "{wrong}");
        }
        let mut uri = StoreUri::parse("file:///x?n=many").expect("a URI");
        let error = uri.params.take_number::<u8>("n").expect_err("no number");
        assert_eq!(error.to_string(), "n=many: write a whole number");
    }
}
