#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::sequence_set::run(data));
