//! Working days of an office, made from a seed: who receives what, and who reads what.
//!
//! [`office`] makes the days and knows nothing of any policy. It was written, and committed, before the policy
//! that it judges; its habits are drawn anew from every seed and stay hidden from whoever is judged.

pub mod habits;
pub mod office;
pub mod rivals;
pub mod rng;
pub mod trial;
