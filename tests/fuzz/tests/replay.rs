//! Every committed input, and as many mutations of them as fit a test run. A failure names the input; a mutated
//! one is written out, so that it can be made small, named and committed.

use fuzz_targets::{Mutator, TARGETS, corpus};
use std::panic::catch_unwind;

#[test]
fn every_target_holds_on_its_corpus() {
    let mut inputs = 0;
    for (target, run) in TARGETS {
        let corpus = corpus(target).unwrap();
        assert!(corpus.len() >= 5, "{target} has hardly a corpus");
        for (name, octets) in corpus {
            assert!(catch_unwind(|| run(&octets)).is_ok(), "{target}/{name}");
            inputs += 1;
        }
    }
    println!("{inputs} inputs of {} targets", TARGETS.len());
}

#[test]
fn every_target_holds_on_mutations_of_its_corpus() {
    for (n, (target, run)) in (0_u64..).zip(TARGETS) {
        let pool = corpus(target).unwrap().into_iter().map(|(_, octets)| octets).collect();
        let mut mutator = Mutator::new(0x5EED + n, pool);
        for round in 0..ROUNDS {
            let input = mutator.input();
            let held = catch_unwind(|| run(&input)).is_ok();
            assert!(held, "{target}, round {round}: {}", input.escape_ascii());
        }
    }
    println!("{ROUNDS} mutations of each of {} targets", TARGETS.len());
}

/// A few seconds in all; `deploy/soak fuzz` goes on for as long as it is told.
const ROUNDS: usize = 20_000;
