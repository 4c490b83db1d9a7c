//! Columns of a row that may be damaged: one of another type than was written is no reason to lose the others.

use rusqlite::{Row, types::ValueRef};

/// Octets, or none where there are none.
pub(super) fn octets(row: &Row<'_>, nth: usize) -> Vec<u8> {
    match row.get_ref(nth) {
        Ok(ValueRef::Blob(octets) | ValueRef::Text(octets)) => octets.to_vec(),
        Ok(ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_)) | Err(_) => Vec::new(),
    }
}

/// Exactly so many octets.
pub(super) fn exact<const N: usize>(row: &Row<'_>, nth: usize) -> Option<[u8; N]> {
    octets(row, nth).try_into().ok()
}

/// A number that fits.
pub(super) fn number<T: TryFrom<i64>>(row: &Row<'_>, nth: usize) -> Option<T> {
    match row.get_ref(nth) {
        Ok(ValueRef::Integer(number)) => T::try_from(number).ok(),
        Ok(ValueRef::Null | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_)) | Err(_) => None,
    }
}
