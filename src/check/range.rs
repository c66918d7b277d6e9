//! Ranges of the monitoring plugins: which values of a figure raise an alarm.

use std::fmt;
use std::str::FromStr;

/// A range; values outside it are bad, with `@` those inside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    start: f64,
    end: f64,
    inside: bool,
}

/// Why a text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no range; write 10 (bad above 10), 10: (bad below 10), ~:10, 10:20 or @10:20 (bad inside)"
)]
pub struct NoRange(String);

impl Range {
    /// Whether this value is bad.
    pub fn is_bad(&self, value: f64) -> bool {
        (self.start <= value && value <= self.end) == self.inside
    }

    /// Whether a smaller value is the worse one.
    pub fn low_is_bad(&self) -> bool {
        !self.inside && self.end == f64::INFINITY
    }
}

impl FromStr for Range {
    type Err = NoRange;

    fn from_str(text: &str) -> Result<Self, NoRange> {
        let wrong = || NoRange(text.to_owned());
        let (inside, bounds) = match text.strip_prefix('@') {
            Some(bounds) => (true, bounds),
            None => (false, text),
        };
        let (start, end) = bounds.split_once(':').unwrap_or(("0", bounds));
        let number = |text: &str| match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(wrong()),
        };
        let start = match start {
            "~" => f64::NEG_INFINITY,
            "" => 0.0,
            start => number(start)?,
        };
        let end = if end.is_empty() && bounds.contains(':') { f64::INFINITY } else { number(end)? };
        if start > end || bounds == ":" {
            return Err(wrong());
        }
        Ok(Self { start, end, inside })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.inside {
            f.write_str("@")?;
        }
        match self.start {
            f64::NEG_INFINITY => f.write_str("~:")?,
            start if start == 0.0 && self.end != f64::INFINITY && !self.inside => {}
            start => write!(f, "{start}:")?,
        }
        if self.end == f64::INFINITY { Ok(()) } else { write!(f, "{}", self.end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thresholds::{Bad, TABLE};

    fn bad(range: &str, values: &[f64]) -> Vec<bool> {
        let range: Range = range.parse().unwrap();
        values.iter().map(|value| range.is_bad(*value)).collect()
    }

    #[test]
    fn the_table_of_the_guidelines_holds() {
        assert_eq!(bad("10", &[-1.0, 0.0, 10.0, 10.1]), [true, false, false, true]);
        assert_eq!(bad("10:", &[9.9, 10.0, 1e9]), [true, false, false]);
        assert_eq!(bad("~:10", &[-1e9, 10.0, 10.1]), [false, false, true]);
        assert_eq!(bad("10:20", &[9.9, 10.0, 20.0, 20.1]), [true, false, false, true]);
        assert_eq!(bad("@10:20", &[9.9, 10.0, 20.0, 20.1]), [false, true, true, false]);
        assert_eq!(bad("@3:", &[2.9, 3.0, 1e9]), [false, true, true]);
        assert_eq!(bad(":5", &[-1.0, 0.0, 6.0]), [true, false, true]);
    }

    #[test]
    fn what_is_no_range_is_told_how_to_write_one() {
        for wrong in ["", ":", "a", "20:10", "10:b", "1:2:3", "nan", "inf", "@", "~"] {
            let error = wrong.parse::<Range>().map(|r| format!("{wrong}: {r:?}")).unwrap_err();
            assert!(error.to_string().contains("is no range"), "{error}");
        }
    }

    #[test]
    fn a_range_is_printed_as_it_is_written() {
        for text in ["10", "10:", "~:10", "10:20", "@10:20", "@3:", "@0:100", "0.05"] {
            assert_eq!(text.parse::<Range>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_range_of_a_threshold_is_bad_where_the_threshold_is() {
        for row in TABLE {
            let range: Range = row.range().parse().unwrap();
            for value in [0.0, row.limit * 0.9, row.limit, row.limit * 1.1] {
                let scaled = (value * row.unit.scale() * 1e6).round() / 1e6;
                assert_eq!(range.is_bad(scaled), row.is_bad(value), "{row:?} {range} {value}");
            }
            assert_eq!(range.low_is_bad(), row.bad == Bad::Below, "{row:?}");
        }
    }
}
