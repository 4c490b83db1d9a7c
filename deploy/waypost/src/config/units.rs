//! Sizes, times and rates as people write them: `10 GiB`, `30s`, `10 Mbit/s`.

use std::{fmt, time::Duration};

/// Octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl Size {
    /// Reads `10 GiB`, `500MB`, `4096`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split(text)?;
        let (_, octets) = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
        number.checked_mul(*octets).map(Self)
    }
}

impl fmt::Display for Size {
    /// The largest binary unit that is exact.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, octets): &&(&str, u64)| self.0 >= *octets && self.0.is_multiple_of(*octets);
        match SIZE_UNITS.iter().take(BINARY_UNITS).find(fits) {
            Some((name, octets)) => write!(f, "{} {name}", self.0 / octets),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// Bits a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rate(pub(crate) u64);

impl Rate {
    /// Reads `10 Mbit/s`, `512kbit/s`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split(text)?;
        let (_, bits) = RATE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
        number.checked_mul(*bits).map(Self)
    }

    /// In octets a second.
    pub(crate) fn octets(self) -> u64 {
        self.0 / 8
    }
}

impl fmt::Display for Rate {
    /// The largest unit that is exact.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, bits): &&(&str, u64)| self.0 >= *bits && self.0.is_multiple_of(*bits);
        match RATE_UNITS.iter().find(fits) {
            Some((name, bits)) => write!(f, "{} {name}", self.0 / bits),
            None => write!(f, "{} bit/s", self.0),
        }
    }
}

/// For people: about three digits.
pub(crate) fn human_size(octets: u64) -> String {
    match SIZE_UNITS.iter().take(BINARY_UNITS).find(|(_, unit)| octets >= *unit) {
        Some((name, unit)) => {
            let tenths = u128::from(octets) * 10 / u128::from(*unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{octets} B"),
    }
}

/// For people: the two largest units.
pub(crate) fn human_time(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Reads `500ms`, `30s`, `5m`, `2h`, `7d`.
pub(crate) fn parse_time(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let (_, millis) = TIME_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*millis).map(Duration::from_millis)
}

/// The inverse of [`parse_time`], in the largest unit that is exact.
pub(crate) fn show_time(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (name, unit) = TIME_UNITS
        .iter()
        .find(|(_, unit)| millis >= *unit && millis.is_multiple_of(*unit))
        .unwrap_or(&("ms", 1));
    format!("{}{name}", millis / unit)
}

/// Number and unit, with or without a space between.
fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.strip_prefix(' ').unwrap_or(unit)))
}

const BINARY_UNITS: usize = 4;
const SIZE_UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
    ("", 1),
];
const RATE_UNITS: &[(&str, u64)] =
    &[("Gbit/s", 1_000_000_000), ("Mbit/s", 1_000_000), ("kbit/s", 1000), ("bit/s", 1)];
const TIME_UNITS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, octets, shown) in [
            ("10 GiB", 10 << 30, "10 GiB"),
            ("500MB", 500_000_000, "500000000 B"),
            ("4096", 4096, "4 KiB"),
            ("1 tib", 1 << 40, "1 TiB"),
            ("0", 0, "0 B"),
        ] {
            assert_eq!(Size::parse(text), Some(Size(octets)), "{text}");
            assert_eq!(Size(octets).to_string(), shown);
            assert_eq!(Size::parse(shown), Some(Size(octets)), "{shown}");
        }
        for wrong in ["", "GiB", "ten GiB", "10 GiBs", "-1", "1.5 GiB", "99999999 TiB", "10  GiB"] {
            assert_eq!(Size::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rates_are_read_and_written() {
        for (text, bits, shown) in [
            ("10 Mbit/s", 10_000_000, "10 Mbit/s"),
            ("2500kbit/s", 2_500_000, "2500 kbit/s"),
            ("1 gbit/S", 1_000_000_000, "1 Gbit/s"),
            ("0 bit/s", 0, "0 bit/s"),
        ] {
            assert_eq!(Rate::parse(text), Some(Rate(bits)), "{text}");
            assert_eq!(Rate(bits).to_string(), shown);
            assert_eq!(Rate::parse(shown), Some(Rate(bits)), "{shown}");
        }
        for wrong in ["", "10", "10 Mbit", "10 MB/s", "2.5 Mbit/s", "99999999999 Gbit/s"] {
            assert_eq!(Rate::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Rate(10_000_000).octets(), 1_250_000);
    }

    #[test]
    fn times_are_read_and_written() {
        for (text, millis, shown) in [
            ("30s", 30_000, "30s"),
            ("5m", 300_000, "5m"),
            ("90 s", 90_000, "90s"),
            ("48h", 172_800_000, "2d"),
        ] {
            assert_eq!(parse_time(text), Some(Duration::from_millis(millis)), "{text}");
            assert_eq!(show_time(Duration::from_millis(millis)), shown);
        }
        for wrong in ["", "30", "s", "5 minutes", "1e3s", "99999999999999999999s"] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
        assert_eq!(human_time(Duration::from_secs(3_725)), "1 h 2 min");
        assert_eq!(human_size(1_610_612_736), "1.5 GiB");
    }
}
