//! What a node reads of an earlier process: the proxy mapping table, the connections that went past.

use discovery_core::{adopt, pmt::kept};

/// A file as its core reads it: what is read is written again as it was, octet for octet, or is no file.
pub fn run(data: &[u8]) {
    if let Some(rows) = kept::decode(data, ROWS_MAX) {
        assert!(rows.len() <= ROWS_MAX);
        let again = kept::encode(&rows, ROWS_MAX);
        // A network's address may have had bits behind its length, so the octets may differ, but not what they say.
        assert_eq!(again.len(), data.len());
        assert_eq!(kept::decode(&again, ROWS_MAX), Some(rows));
    }
    if let Some(rows) = adopt::decode(data) {
        assert!(rows.iter().all(|(_, terms, _)| terms.scale.is_none_or(|(a, b)| a <= 14 && b <= 14)));
        assert_eq!(adopt::encode(&rows), data);
    }
}

const ROWS_MAX: usize = 64;
