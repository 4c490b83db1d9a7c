//! Ports of a rule.

use std::{fmt, str::FromStr};

/// A port, or a range with both its ends: never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    first: u16,
    last: u16,
}

/// What is wrong with ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortsError {
    /// The range ends before it begins.
    #[error("ports {first}-{last} are none: the first is the higher; write {last}-{first}")]
    Empty {
        /// As given.
        first: u16,
        /// As given.
        last: u16,
    },
    /// Neither a number nor two.
    #[error("'{0}' is neither a port (0 to 65535, such as 143) nor a range (such as 8000-8100)")]
    Text(String),
}

impl Ports {
    /// From `first` to `last`, both included.
    ///
    /// # Errors
    /// [`PortsError::Empty`].
    pub fn range(first: u16, last: u16) -> Result<Self, PortsError> {
        if first > last { Err(PortsError::Empty { first, last }) } else { Ok(Self { first, last }) }
    }

    /// The first and the last.
    #[must_use]
    pub fn ends(&self) -> (u16, u16) {
        (self.first, self.last)
    }

    /// Whether this port is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl From<u16> for Ports {
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl FromStr for Ports {
    type Err = PortsError;

    /// `143` or `8000-8100`.
    fn from_str(text: &str) -> Result<Self, PortsError> {
        let port = |digits: &str| {
            // u16's own reader would take a sign.
            let plain = digits.bytes().all(|octet| octet.is_ascii_digit());
            digits.parse::<u16>().ok().filter(|_| plain).ok_or_else(|| PortsError::Text(text.to_owned()))
        };
        match text.split_once('-') {
            Some((first, last)) => Self::range(port(first)?, port(last)?),
            None => port(text).map(Self::from),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        for text in ["0", "143", "8000-8100", "0-65535"] {
            assert_eq!(text.parse::<Ports>().unwrap().to_string(), text);
        }
        assert_eq!("7-7".parse::<Ports>().unwrap().to_string(), "7");
        assert_eq!("9-7".parse::<Ports>(), Err(PortsError::Empty { first: 9, last: 7 }));
        for text in ["", "-", "1-", "-1", "+1", "1-2-3", "65536", "1 ", "http", "1-99999"] {
            assert_eq!(text.parse::<Ports>(), Err(PortsError::Text(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn both_ends_belong_to_it() {
        let ports = Ports::range(10, 12).unwrap();
        let inside: Vec<u16> = (0..=u16::MAX).filter(|&port| ports.contains(port)).collect();
        assert_eq!(inside, [10, 11, 12]);
    }
}
