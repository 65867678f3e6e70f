//! The text format of Prometheus, version 0.0.4. Pure.

use std::fmt::Write;

/// What a metric's value means over time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only rises, until the process ends.
    Counter,
    Gauge,
}

/// A page of metrics as it grows. The samples of one metric follow each other.
#[derive(Default)]
pub struct Page {
    text: String,
    current: &'static str,
}

impl Page {
    /// Begins a metric; [`Page::sample`] adds its values.
    pub fn metric(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.current = name;
        let help = escape(help, false);
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value of the metric begun last.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(self.current);
        for (at, (label, value)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{open}{label}=\"{}\"", escape(value, true));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let value = match value {
            value if value.is_infinite() && value > 0.0 => "+Inf".to_owned(),
            value if value.is_infinite() => "-Inf".to_owned(),
            value => value.to_string(),
        };
        let _ = writeln!(self.text, " {value}");
    }

    pub fn text(self) -> String {
        self.text
    }
}

fn escape(text: &str, quotes: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '"' if quotes => escaped.push_str("\\\""),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_prometheus_own() {
        let mut page = Page::default();
        page.metric("a_total", Kind::Counter, "Back\\slash\nand line.");
        page.sample(&[], 3.0);
        page.metric("b", Kind::Gauge, "\"Quoted\".");
        page.sample(&[("machine", "a\"b\\c\nd"), ("reason", "full")], 0.25);
        assert_eq!(
            page.text(),
            "# HELP a_total Back\\\\slash\\nand line.\n# TYPE a_total counter\na_total 3\n\
             # HELP b \"Quoted\".\n# TYPE b gauge\nb{machine=\"a\\\"b\\\\c\\nd\",reason=\"full\"} 0.25\n"
        );
    }
}
