//! The message store.

mod bodies;
#[cfg(test)]
mod bodies_tests;
mod body;
mod body_file;
mod counters;
mod disk;
#[cfg(test)]
mod disk_battery;
#[cfg(test)]
mod fault_disk;
mod seal;
