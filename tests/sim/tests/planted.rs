//! A planted bug for each checker is found by that checker, within a number of seeds that is printed. Needs the feature
//! `mutants`: `cargo test -p sim --features mutants --test planted -- --nocapture`.

use std::process::Command;

/// Planted bug, who must find it, within how many seeds.
const PLANTED: [(&str, &str, u64); 18] = [
    ("node-one-key-for-all", "canary", 100),
    ("node-kept-for-another", "canary", 20),
    ("keeper-marks-seen", "seen", 50),
    ("keeper-selects", "seen", 20),
    ("keeper-outlives-its-limit", "kept", 20),
    ("sim-kept-for-ever", "kept", 50),
    ("sim-kept-body-lost", "no-wedge", 100),
    ("session-slice-told", "transcript", 20),
    ("session-slice-sets-seen", "seen", 20),
    ("node-body-shifted", "transcript", 20),
    ("session-expunged-served", "transcript", 200),
    ("session-numbers-not-translated", "transcript", 100),
    ("node-store-not-forwarded", "nothing-lost", 20),
    ("node-window-unbounded", "budget", 400),
    ("node-store-reply-lost", "no-wedge", 20),
    ("node-peek-dropped", "seen", 20),
    ("session-seen-not-awaited", "seen", 50),
    ("session-seen-not-stored", "seen", 50),
];

#[test]
fn planted_bugs_are_found_by_the_checker_of_their_concern() {
    if !cfg!(feature = "mutants") {
        println!("skipped: built without the feature mutants");
        return;
    }
    let mut missed = Vec::new();
    for (bug, checker, seeds_max) in PLANTED {
        let output = Command::new(env!("CARGO_BIN_EXE_sim"))
            .args(["--seeds", &format!("1..{}", seeds_max + 1), "--find", checker])
            .env("WAYPOST_MUTANT", bug)
            .output()
            .expect("the simulator runs");
        println!("{bug}: {}", String::from_utf8_lossy(&output.stdout).trim_end());
        if !output.status.success() {
            missed.push(bug);
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
