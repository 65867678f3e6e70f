//! Failures that look like the machine's rather than the build's: words that a broken host puts into whatever is built
//! there.
//!
//! A table from words to signatures, and nothing else. A build may print such words for a reason of its own, so a
//! signature alone proves nothing; what is made of several is decided in `suspicion`.

/// What seems to be wrong with the machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Signature {
    NoSpace,
    NoDns,
    Sandbox,
    NoMemory,
    ReadOnly,
}

/// Words (in lower case) and what they mean; the first row that fits counts.
const TABLE: &[(&str, Signature)] = &[
    // Nix's own sandbox, before any builder runs.
    ("while setting up the build environment", Signature::Sandbox),
    (
        "kernel namespaces that are required for sandboxing",
        Signature::Sandbox,
    ),
    ("unable to make '/' private", Signature::Sandbox),
    ("setting up a private mount namespace", Signature::Sandbox),
    ("error: cloning builder process", Signature::Sandbox),
    ("error: unable to fork", Signature::Sandbox),
    (
        "error: unshare: operation not permitted",
        Signature::Sandbox,
    ),
    ("unable to load seccomp bpf program", Signature::Sandbox),
    ("no space left on device", Signature::NoSpace),
    ("disk quota exceeded", Signature::NoSpace),
    ("database or disk is full", Signature::NoSpace),
    ("could not resolve host", Signature::NoDns),
    ("couldn't resolve host", Signature::NoDns),
    ("temporary failure in name resolution", Signature::NoDns),
    ("name or service not known", Signature::NoDns),
    ("cannot allocate memory", Signature::NoMemory),
    ("virtual memory exhausted", Signature::NoMemory),
    ("killed signal terminated program", Signature::NoMemory),
    ("read-only file system", Signature::ReadOnly),
];

/// Bytes at the end of a text that are looked at: what ended a build stands at its end.
pub const TEXT_BYTES_MAX: usize = 16 << 10;

/// What the words of a failure look like, if they look like a broken machine.
pub fn classify(text: &str) -> Option<Signature> {
    let mut from = text.len().saturating_sub(TEXT_BYTES_MAX);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let text = text[from..].to_lowercase();
    let found = TABLE.iter().find(|(words, _)| text.contains(words));
    found.map(|(_, signature)| *signature)
}

impl Signature {
    pub const ALL: [Signature; 5] = [
        Signature::NoSpace,
        Signature::NoDns,
        Signature::Sandbox,
        Signature::NoMemory,
        Signature::ReadOnly,
    ];

    /// What seems to be wrong, for messages.
    pub fn words(self) -> &'static str {
        match self {
            Signature::NoSpace => "no space left on device",
            Signature::NoDns => "host names cannot be resolved",
            Signature::Sandbox => "the sandbox cannot be set up",
            Signature::NoMemory => "cannot allocate memory",
            Signature::ReadOnly => "read-only file system",
        }
    }

    /// What to do about the machine.
    pub fn advice(self) -> &'static str {
        match self {
            Signature::NoSpace => "make room there: `df -h /nix/store /tmp`, `nix-collect-garbage`; min-free in its nix.conf",
            Signature::NoDns => "does DNS work there: `getent hosts cache.nixos.org`, /etc/resolv.conf?",
            Signature::Sandbox => "does its kernel allow namespaces (user.max_user_namespaces, the container it runs in)? `sandbox` in its nix.conf",
            Signature::NoMemory => "fewer slots, or more memory or swap there: `free -h`, `dmesg`",
            Signature::ReadOnly => "its disk may be failing: `dmesg`, `mount`",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_broken_machines_say() {
        for (text, expected) in [
            (
                "builder for '/nix/store/x.drv' failed with exit code 1;\nlast 10 log lines:\n> cp: error writing 'y': No space left on device",
                Some(Signature::NoSpace),
            ),
            ("error: writing to file: Disk quota exceeded", Some(Signature::NoSpace)),
            (
                "error: executing SQLite statement 'insert': database or disk is full",
                Some(Signature::NoSpace),
            ),
            (
                "curl: (6) Could not resolve host: github.com\nerror: cannot download source from any mirror",
                Some(Signature::NoDns),
            ),
            (
                "fatal: unable to access 'https://x/': Temporary failure in name resolution",
                Some(Signature::NoDns),
            ),
            (
                "while setting up the build environment: mounting /proc: Operation not permitted",
                Some(Signature::Sandbox),
            ),
            (
                // The sandbox's own words come first: its disk may be what is full.
                "while setting up the build environment: creating directory '/tmp/x': No space left on device",
                Some(Signature::Sandbox),
            ),
            (
                "error: this system does not support the kernel namespaces that are required for sandboxing",
                Some(Signature::Sandbox),
            ),
            ("fork: Cannot allocate memory", Some(Signature::NoMemory)),
            (
                "g++: fatal error: Killed signal terminated program cc1plus",
                Some(Signature::NoMemory),
            ),
            ("touch: cannot touch 'x': Read-only file system", Some(Signature::ReadOnly)),
            ("builder for '/nix/store/x.drv' failed with exit code 1", None),
            ("test memory ... FAILED: out of memory was expected", None),
            ("make: *** [all] Error 2", None),
            ("", None),
        ] {
            assert_eq!(classify(text), expected, "{text}");
        }
    }

    #[test]
    fn only_the_end_counts_and_any_bytes_do() {
        let early = format!("No space left on device\n{}", "ä".repeat(TEXT_BYTES_MAX));
        assert_eq!(classify(&early), None);
        let late = format!("{}\nNo space left on device", "ä".repeat(TEXT_BYTES_MAX));
        assert_eq!(classify(&late), Some(Signature::NoSpace));
    }

    #[test]
    fn the_words_of_the_table_are_in_lower_case() {
        for (words, _) in TABLE {
            assert_eq!(*words, words.to_lowercase());
        }
    }
}
