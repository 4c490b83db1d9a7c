//! All scenarios, a row each.

use crate::case::Case;
use crate::scenarios::{identical, logins};

/// One row.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What holds, in one clause.
    pub(crate) says: &'static str,
    /// Whether it is part of `--quick`.
    pub(crate) quick: bool,
    /// Why it cannot pass yet. Such a row is counted as skipped while it fails, and fails once it passes, so that the
    /// mark goes away.
    pub(crate) not_yet: Option<&'static str>,
    pub(crate) run: fn(&Case) -> anyhow::Result<()>,
}

/// A scenario that cannot run here, with the reason.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

const fn row(name: &'static str, says: &'static str, run: fn(&Case) -> anyhow::Result<()>) -> Scenario {
    Scenario { name, says, quick: false, not_yet: None, run }
}

const fn quick(scenario: Scenario) -> Scenario {
    Scenario { quick: true, ..scenario }
}

const fn not_yet(why: &'static str, scenario: Scenario) -> Scenario {
    Scenario { not_yet: Some(why), ..scenario }
}

const FORWARDS_ONLY: &str = "the session only forwards";

pub(crate) const SCENARIOS: &[Scenario] = &[
    quick(row("identical-curl-dovecot", "curl gets the same direct, cold and warm", identical::curl_dovecot)),
    quick(row(
        "identical-mbsync-dovecot",
        "mbsync gets the same direct, cold and warm",
        identical::mbsync_dovecot,
    )),
    row("identical-mutt-dovecot", "mutt gets the same direct, cold and warm", identical::mutt_dovecot),
    row("identical-imaplib-dovecot", "imaplib gets the same, awkward mail too", identical::imaplib_dovecot),
    quick(row(
        "identical-items-dovecot",
        "every kind of item is the same, awkward mail too",
        identical::items_dovecot,
    )),
    row("identical-curl-cyrus", "curl gets the same direct, cold and warm", identical::curl_cyrus),
    row("identical-mbsync-cyrus", "mbsync gets the same direct, cold and warm", identical::mbsync_cyrus),
    row("identical-mutt-cyrus", "mutt gets the same direct, cold and warm", identical::mutt_cyrus),
    row("identical-imaplib-cyrus", "imaplib gets the same, awkward mail too", identical::imaplib_cyrus),
    row("identical-items-cyrus", "every kind of item is the same, awkward mail too", identical::items_cyrus),
    not_yet(
        FORWARDS_ONLY,
        quick(row(
            "warm-mbsync-dovecot",
            "a second mbsync costs the line a twentieth",
            identical::warm_mbsync_dovecot,
        )),
    ),
    not_yet(
        FORWARDS_ONLY,
        row("warm-mbsync-cyrus", "a second mbsync costs the line a twentieth", identical::warm_mbsync_cyrus),
    ),
    not_yet(
        FORWARDS_ONLY,
        row(
            "warm-open-dovecot",
            "a message opened again does not cross the line",
            identical::warm_open_dovecot,
        ),
    ),
    not_yet(
        FORWARDS_ONLY,
        row("warm-open-cyrus", "a message opened again does not cross the line", identical::warm_open_cyrus),
    ),
    quick(row(
        "login-refused",
        "a wrong password gets the server's own refusal and no mail",
        logins::refused,
    )),
];
