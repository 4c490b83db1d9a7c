//! The flags of a TCP header (RFC 9293 §3.1), by the octet in which they stand.

/// No more octets come.
pub const FIN: u8 = 1;
/// A connection begins.
pub const SYN: u8 = 2;
/// A connection is over at once.
pub const RST: u8 = 4;
/// The acknowledgement number counts.
pub const ACK: u8 = 16;
/// The urgent pointer counts.
pub const URG: u8 = 32;
