//! Values of inputs as text: their words, the addresses in them, and what may not be there. Knows which parts are secrets and does
//! not show them.

use super::task::Trouble;

/// A value's length at most, bytes.
const VALUE_BYTES_MAX: usize = 4_096;
/// What is shown instead of a secret.
const HIDDEN: &str = "***";
/// A user's name without a password is shown up to this length, bytes; a longer one is taken for a token.
const USER_BYTES_MAX: usize = 15;
/// Parameters of addresses that say which state of what is meant.
const PUBLIC_PARAMETERS: &[&str] = &[
    "ref",
    "rev",
    "dir",
    "narHash",
    "lastModified",
    "revCount",
    "shallow",
    "submodules",
    "allRefs",
];

/// The words of a value. None can be taken for an option by a program that gets it as an argument.
///
/// # Errors
/// What is wrong with it.
pub fn words(value: &str) -> Result<Vec<&str>, Trouble> {
    let words = any_words(value)?;
    match words.iter().find(|word| word.starts_with('-')) {
        Some(word) => Err(wrong(format!(
            "`{word}` begins with `-` and could be taken for an option"
        ))),
        None => Ok(words),
    }
}

/// The words of a value, whatever they begin with.
///
/// # Errors
/// That the value is not one line of text.
pub fn any_words(value: &str) -> Result<Vec<&str>, Trouble> {
    let blank = |c: char| matches!(c, ' ' | '\t');
    let words = value.trim().split(blank).filter(|word| !word.is_empty());
    let words: Vec<&str> = words.collect();
    words.iter().try_for_each(|word| plain(word))?;
    Ok(words)
}

/// Makes sure that a value is one line of text.
///
/// # Errors
/// That it is not.
pub fn plain(value: &str) -> Result<(), Trouble> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(wrong(format!(
            "the value is longer than {VALUE_BYTES_MAX} bytes"
        )));
    }
    match value.chars().any(char::is_control) {
        true => Err(wrong("the value has a line break or a control character")),
        false => Ok(()),
    }
}

/// Something to fetch from, whose form was looked at.
///
/// # Errors
/// What is wrong, and what is expected.
pub fn check_uri(uri: &str, schemes: &[&str], or_path: bool) -> Result<(), Trouble> {
    let path = if or_path { ", or a full path" } else { "" };
    let expected = || format!("expected {}://...{path}", schemes.join("://..., "));
    if let Some((scheme, rest)) = uri.split_once("://") {
        if !schemes.contains(&scheme) {
            return Err(wrong(format!(
                "{} is not fetched from: {}",
                shown(uri),
                expected()
            )));
        }
        // A host that is an option of ssh's.
        let host = rest.split('/').next().unwrap_or_default();
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        return match host.starts_with('-') {
            true => Err(wrong(format!("`{host}` is no host"))),
            false => Ok(()),
        };
    }
    if or_path && uri.starts_with('/') {
        return Ok(());
    }
    Err(wrong(format!("`{}`: {}", shown(uri), expected())))
}

/// Whether it has the form `[USER@]HOST:PATH`, which ssh understands.
pub fn is_ssh_short(uri: &str) -> bool {
    let Some((host, path)) = uri.split_once(':') else {
        return false;
    };
    let name = host.rsplit_once('@').map_or(host, |(_, name)| name);
    let allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | '[' | ']' | '+');
    // Two colons: a transport of git's, such as ext::COMMAND.
    !name.is_empty()
        && !name.starts_with('-')
        && host.chars().all(allowed)
        && !path.is_empty()
        && !path.starts_with(':')
        && !path.starts_with('-')
}

/// A value fit for a log: without passwords and tokens in addresses.
pub fn shown(value: &str) -> String {
    let mut text = crate::base::text::presentable(value.as_bytes(), VALUE_BYTES_MAX);
    for secret in secrets(value) {
        text = text.replace(&secret, HIDDEN);
    }
    text
}

/// What in a value's addresses nobody should see.
pub fn secrets(value: &str) -> Vec<String> {
    let mut secrets = Vec::new();
    for word in value.split_whitespace() {
        let Some((scheme, rest)) = word.split_once("://") else {
            continue;
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let web = is_web(scheme);
        if let Some((login, _)) = authority.rsplit_once('@') {
            let (user, password) = match login.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (login, None),
            };
            // A token often stands where the user's name is. ssh's user is none. A short name may be any word of a message.
            let user = Some(user).filter(|user| web && user.len() > USER_BYTES_MAX);
            let hidden = if web {
                password.and(Some(login))
            } else {
                password
            };
            secrets.extend(hidden.map(str::to_owned));
            secrets.extend(password.filter(|word| word.len() > 3).map(str::to_owned));
            secrets.extend(user.map(str::to_owned));
        }
        if let (true, Some((_, query))) = (web, rest.split_once('?')) {
            let query = query.split('#').next().unwrap_or_default();
            let is_public = |parameter: &&str| {
                let name = parameter.split('=').next().unwrap_or_default();
                PUBLIC_PARAMETERS.contains(&name)
            };
            // Each alone: Nix sorts them.
            let hidden = query.split('&').filter(|parameter| !is_public(parameter));
            secrets.extend(hidden.map(str::to_owned));
        }
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets
}

/// Whether addresses of this scheme have users, passwords and parameters as the web's do; also in a flake's reference.
fn is_web(scheme: &str) -> bool {
    let transport = scheme.rsplit('+').next().unwrap_or_default();
    matches!(transport, "http" | "https" | "ftp") || scheme == "git+ssh"
}

/// Text without these secrets.
pub fn without(text: &str, secrets: &[String]) -> String {
    secrets.iter().fold(text.to_owned(), |text, secret| {
        text.replace(secret.as_str(), HIDDEN)
    })
}

/// Text without what in a flake's reference nobody should see.
pub fn without_secrets_of_flake(flake: &str, text: &str) -> String {
    without(text, &secrets(flake))
}

pub fn wrong(what: impl Into<String>) -> Trouble {
    Trouble::Wrong(what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_be_taken_for_an_option_or_a_command() {
        for bad in ["-u", "https://h/x --upload-pack=x", "a\nb", "a\0b"] {
            assert!(words(bad).is_err(), "{bad}");
        }
        assert!(matches!(words("u  'b c'"), Ok(words) if words == ["u", "'b", "c'"]));
        assert!(matches!(words(" u\tb \n"), Ok(words) if words == ["u", "b"]));
        let check = |uri| check_uri(uri, &["https", "ssh"], true);
        for bad in [
            "ext::sh",
            "http://h/x",
            "x/y",
            "ssh://-oProxyCommand=x/y",
            "ssh://u@-o/y",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        for good in ["https://h/x", "/a/b", "ssh://git@h/y"] {
            assert!(check(good).is_ok(), "{good}");
        }
        assert!(is_ssh_short("git@github.com:o/r.git") && is_ssh_short("h:x"));
        for bad in ["ext::sh -c x", "git@-o:x", "h:-x", "a b:c", "/x:y", "h:"] {
            assert!(!is_ssh_short(bad), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(
            shown("https://tok:x@h/r.git main"),
            "https://***@h/r.git main"
        );
        assert_eq!(
            shown("https://h/x?token=1 ssh://git@h/y"),
            "https://h/x?*** ssh://git@h/y"
        );
        assert_eq!(
            without("fatal: pass1 no", &secrets("ssh://u:pass1@h/")),
            "fatal: *** no"
        );
    }

    #[test]
    fn a_name_is_no_secret_but_a_token_is() {
        assert!(secrets("https://git@h/r.git git+ssh://git@h/r").is_empty());
        let token = "ghp_0123456789abcdef";
        assert_eq!(shown(&format!("https://{token}@h/r")), "https://***@h/r");
        let login = format!("https://{token}:x-oauth-basic@h/r");
        assert_eq!(shown(&login), "https://***@h/r");
        // git tells the name alone.
        assert_eq!(
            without(&format!("no 'https://{token}@h/r'"), &secrets(&login)),
            "no 'https://***@h/r'"
        );
    }

    #[test]
    fn secrets_of_flakes_are_not_shown() {
        for scheme in [
            "git+http",
            "git+https",
            "tarball+http",
            "tarball+https",
            "git+ssh",
        ] {
            let flake = format!("{scheme}://alice:s3cr3t@h/r?ref=main&token=1#jobs");
            let hidden = format!("{scheme}://***@h/r?ref=main&***#jobs");
            assert_eq!(shown(&flake), hidden);
            assert_eq!(
                without_secrets_of_flake(&flake, "alice: http://alice:s3cr3t@h/r: s3cr3t"),
                "alice: http://***@h/r: ***"
            );
        }
    }
}
