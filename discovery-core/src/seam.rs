//! The traits in which rooms meet, where std is enough. Async ones live in the crate `seams`.

pub mod advisor;
pub mod blob;
pub mod disk;
pub mod gate;
pub mod preloaded;
pub mod sealer;
pub mod sink;
