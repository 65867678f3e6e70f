//! Text from outside, made fit for a log line or a column.

/// The text without terminal escape sequences and without control characters other than newline and tab.
pub fn plain(text: &str) -> String {
    presentable(text.as_bytes(), usize::MAX)
}

/// Bytes as text that a terminal, a log and a database take: valid UTF-8, no terminal escapes, no control characters but
/// newline and tab, at most `bytes_max` bytes.
pub fn presentable(bytes: &[u8], bytes_max: usize) -> String {
    let mut kept = Vec::with_capacity(bytes.len().min(bytes_max));
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            0x1b => rest = skip_escape(rest),
            b'\n' | b'\t' => kept.push(byte),
            0..=0x1f | 0x7f => {}
            _ => kept.push(byte),
        }
        if kept.len() >= bytes_max {
            break;
        }
    }
    // C1 control characters are control characters too, two bytes long in UTF-8.
    let mut text: String = String::from_utf8_lossy(&kept)
        .chars()
        .filter(|c| !matches!(c, '\u{80}'..='\u{9f}'))
        .collect();
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// What follows a terminal escape sequence whose ESC has been taken.
fn skip_escape(rest: &[u8]) -> &[u8] {
    let after = |found: Option<usize>| match found {
        Some(i) => &rest[i + 1..],
        None => &[],
    };
    match rest.first() {
        // CSI: parameters and intermediates up to a final byte.
        Some(b'[') => {
            let last = rest.iter().skip(1).position(|b| !(0x20..=0x3f).contains(b));
            match last.map(|i| i + 1) {
                // Anything but a final byte is no part of the sequence.
                Some(i) if !(0x40..=0x7e).contains(&rest[i]) => &rest[i..],
                found => after(found),
            }
        }
        // OSC: text up to BEL or the end of the line.
        Some(b']') => {
            let last = rest.iter().position(|b| matches!(b, 0x07 | 0x1b | b'\n'));
            match last {
                Some(i) if rest[i] != 0x07 => &rest[i..],
                found => after(found),
            }
        }
        Some(0x20..=0x7e) => &rest[1..],
        _ => rest,
    }
}

/// Text in which `%XX` stands for a byte, as in URLs. The error completes "... is not usable: ".
///
/// # Errors
/// Half an escape, or bytes that are no text.
pub fn percent_decoded(text: &str) -> Result<String, &'static str> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || bytes.next().and_then(|d| char::from(d).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
            _ => return Err("`%` is not followed by two hexadecimal digits"),
        }
    }
    String::from_utf8(out).map_err(|_| "percent-encoded bytes are not UTF-8")
}

/// Everything but letters, digits and `-._~` (and `/`, if that is to be kept) as `%XX`.
pub fn percent_encoded(text: &str, keep_slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            b'/' if keep_slashes => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Bytes as an operator writes them in a setting: `512 MiB`, `1.5 GiB`.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64 / 1024.0;
    if value < 1.0 {
        return format!("{bytes} bytes");
    }
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match value < 10.0 && value.fract() >= 0.05 {
        true => format!("{value:.1} {}", UNITS[unit]),
        false => format!("{value:.0} {}", UNITS[unit]),
    }
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

/// Unix time as RFC 3339 has it, in UTC.
pub fn rfc3339(unix_secs: i64) -> String {
    let (days, secs) = (unix_secs.div_euclid(86_400), unix_secs.rem_euclid(86_400));
    // The days since 0000-03-01 in cycles of 400 years, so that a leap day is the last day of its year.
    let from_march = days + 719_468;
    let (era, day) = (
        from_march.div_euclid(146_097),
        from_march.rem_euclid(146_097),
    );
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 {
        (month + 3, era * 400 + year)
    } else {
        (month - 9, era * 400 + year + 1)
    };
    format!(
        "{year:04}-{month:02}-{day_of_month:02}T{:02}:{:02}:{:02}Z",
        secs / 3600,
        secs / 60 % 60,
        secs % 60
    )
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
    fn bytes_are_told_in_powers_of_1024() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1 << 20, "1 MiB"),
            (1_610_612_736, "1.5 GiB"),
            (52_400_000 << 10, "50 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes_text(bytes), text);
        }
    }

    #[test]
    fn percent_escapes_are_bytes() {
        assert_eq!(percent_decoded("a%20%c3%A4%2f"), Ok("a ä/".to_owned()));
        for bad in ["%", "%2", "%zz", "%ff"] {
            assert!(percent_decoded(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(secs), text);
        }
    }

    #[test]
    fn clipping_respects_characters() {
        assert_eq!(clip("abc", 3), "abc");
        assert_eq!(clip("aäöü", 6), "aä...");
    }
}
