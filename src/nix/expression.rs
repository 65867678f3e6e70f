//! Pieces of the Nix language, written by us.

use std::fmt::Write as _;

/// A string literal of the language. Line ends and tabs are escaped, so it is one line if the text has no other control
/// characters.
pub fn string(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    literal.push('"');
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' | '\\' => literal.extend(['\\', c]),
            '$' if rest.peek() == Some(&'{') => literal.push_str("\\$"),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            _ => literal.push(c),
        }
    }
    literal.push('"');
    literal
}

/// The same for a text of any characters, as an expression that is one line of plain ASCII.
pub fn ascii_string(text: &str) -> String {
    if text.chars().all(|c| matches!(c, ' '..='~')) {
        return string(text);
    }
    let mut json = String::from("\"");
    for unit in text.encode_utf16() {
        match char::from_u32(u32::from(unit)) {
            Some(c @ ('"' | '\\')) => json.extend(['\\', c]),
            Some(c @ ' '..='~') => json.push(c),
            _ => {
                // Writing into a string cannot fail.
                let _ = write!(json, "\\u{unit:04x}");
            }
        }
    }
    json.push('"');
    format!("(builtins.fromJSON {})", string(&json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        assert_eq!(string("a \"b\" \\ ${c} $d"), r#""a \"b\" \\ \${c} $d""#);
        assert_eq!(string("$${x}"), r#""$\${x}""#);
        assert_eq!(string("one\ntwo\r\t"), r#""one\ntwo\r\t""#);
        assert_eq!(ascii_string("plain ${x}"), r#""plain \${x}""#);
        assert_eq!(
            ascii_string("é\u{1}\"𝄞"),
            r#"(builtins.fromJSON "\"\\u00e9\\u0001\\\"\\ud834\\udd1e\"")"#
        );
    }
}
