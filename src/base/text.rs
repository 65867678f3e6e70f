//! Text from outside, made fit for a log line or a column.

/// The text without terminal escape sequences and without control characters other than newline and tab.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => match chars.peek() {
                Some('[') => {
                    chars.next();
                    // A control sequence ends with a byte from '@' to '~'.
                    while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
                }
                Some(']') => {
                    // An operating system command ends with BEL or ESC \.
                    while let Some(c) = chars.next() {
                        if c == '\u{7}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                _ => {
                    chars.next();
                }
            },
            '\n' | '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// At most `bytes_max` bytes of the text, cut at a character, with "..." where something was cut.
pub fn clip(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut end = bytes_max.saturating_sub(3);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}

/// Seconds as a person says them: `42 s`, `3 min 5 s`, `2 h 10 min`, `3 days 4 h`.
pub fn duration(secs: i64) -> String {
    const DAY: i64 = 86_400;
    match secs {
        i64::MIN..60 => format!("{secs} s"),
        60..3600 => format!("{} min {} s", secs / 60, secs % 60),
        3600..172_800 => format!("{} h {} min", secs / 3600, secs % 3600 / 60),
        _ => format!("{} days {} h", secs / DAY, secs % DAY / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_readable() {
        assert_eq!(
            [duration(7), duration(65), duration(7260), duration(180_000)],
            ["7 s", "1 min 5 s", "2 h 1 min", "2 days 2 h"]
        );
    }

    #[test]
    fn escapes_and_controls_go() {
        for (text, want) in [
            ("\u{1b}[31;1merror:\u{1b}[0m no\r\n", "error: no\n"),
            ("a\u{0}b\u{7}c", "abc"),
            ("\u{1b}]0;title\u{7}x", "x"),
            ("\u{1b}]8;;url\u{1b}\\link", "link"),
            ("open \u{1b}[", "open "),
        ] {
            assert_eq!(plain(text), want);
        }
    }

    #[test]
    fn clipping_respects_characters() {
        assert_eq!(clip("abc", 3), "abc");
        assert_eq!(clip("aäöü", 6), "aä...");
    }
}
