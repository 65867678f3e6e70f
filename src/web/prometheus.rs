//! The text format of Prometheus, version 0.0.4. Pure.

use std::fmt::Write;

/// What a metric's value means over time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only rises, until the process ends.
    Counter,
    Gauge,
    /// How many were up to each bound.
    Histogram,
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
            Kind::Histogram => "histogram",
        };
        self.current = name;
        let help = escape(help, false);
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value of the metric begun last.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.named("", labels, value);
    }

    /// A histogram of the metric begun last. `counts`: up to each bound, each with those before it, and last all.
    pub fn histogram(&mut self, labels: &[(&str, &str)], bounds: &[f64], counts: &[u64], sum: f64) {
        let bounds = bounds.iter().map(f64::to_string);
        let bounds = bounds.chain(std::iter::once("+Inf".to_owned()));
        for (bound, count) in bounds.zip(counts) {
            let labels = [labels, &[("le", bound.as_str())]].concat();
            self.named("_bucket", &labels, *count as f64);
        }
        self.named("_sum", labels, sum);
        self.named("_count", labels, counts.last().copied().unwrap_or(0) as f64);
    }

    fn named(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(self.current);
        self.text.push_str(suffix);
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
        page.metric("c", Kind::Histogram, "Seconds.");
        page.histogram(&[("a", "b")], &[0.5, 1.0], &[1, 1, 3], 12.5);
        assert_eq!(
            page.text(),
            "# HELP a_total Back\\\\slash\\nand line.\n# TYPE a_total counter\na_total 3\n\
             # HELP b \"Quoted\".\n# TYPE b gauge\nb{machine=\"a\\\"b\\\\c\\nd\",reason=\"full\"} 0.25\n\
             # HELP c Seconds.\n# TYPE c histogram\nc_bucket{a=\"b\",le=\"0.5\"} 1\nc_bucket{a=\"b\",le=\"1\"} 1\n\
             c_bucket{a=\"b\",le=\"+Inf\"} 3\nc_sum{a=\"b\"} 12.5\nc_count{a=\"b\"} 3\n"
        );
    }
}
