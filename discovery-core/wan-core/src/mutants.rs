//! Switches that turn one guard off, so that a test can be seen to fail without it. Each name stands in
//! `guards.tsv` beside the test that must notice. Compiled in only with the feature `mutants`, never in a release.

/// Whether the guard `name` is turned off: by `WAYPOST_MUTANT=name` in the environment, read once.
#[cfg(feature = "mutants")]
#[must_use]
pub fn on(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("WAYPOST_MUTANT").ok()).as_deref() == Some(name)
}

/// Whether the guard `name` is turned off: never, without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
#[must_use]
#[inline(always)]
pub const fn on(_name: &str) -> bool {
    false
}
