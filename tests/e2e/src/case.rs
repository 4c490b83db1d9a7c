//! What a scenario is given: where the executable is, a lab prefix and a directory of its own, and a place to say
//! what it found.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context;
use lab::{Lab, LabSpec};
use serde_json::Value;

/// One run of one scenario.
#[derive(Debug)]
pub(crate) struct Case {
    /// The executable under test.
    pub(crate) executable: PathBuf,
    prefix: String,
    /// Logs of the executable; stays after the run, so that a failure can be looked into.
    directory: PathBuf,
    watches: RefCell<Vec<Watch>>,
    notes: RefCell<BTreeMap<&'static str, Value>>,
    processes: Cell<u32>,
}

impl Case {
    pub(crate) fn new(executable: &Path, prefix: String, directory: PathBuf) -> anyhow::Result<Self> {
        drop(fs::remove_dir_all(&directory));
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self {
            executable: executable.to_owned(),
            prefix,
            directory,
            watches: RefCell::default(),
            notes: RefCell::default(),
            processes: Cell::new(0),
        })
    }

    /// The usual line: 20 ms, 100 Mbit/s.
    pub(crate) fn lab(&self) -> anyhow::Result<Lab> {
        Lab::build(LabSpec { prefix: Some(self.prefix.clone()), ..LabSpec::new(20.0, 100.0) })
    }

    /// Starts the names of the lab's namespaces.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A figure or word for the report.
    pub(crate) fn note(&self, name: &'static str, value: impl Into<Value>) {
        self.notes.borrow_mut().insert(name, value.into());
    }

    pub(crate) fn notes(&self) -> BTreeMap<&'static str, Value> {
        self.notes.borrow().clone()
    }

    /// Watches the log of the next process of the executable.
    pub(crate) fn watch(&self) -> Watch {
        let number = self.processes.get() + 1;
        self.processes.set(number);
        let watch =
            Watch { log: self.directory.join(format!("waypost-{number}.log")), announced: Rc::default() };
        self.watches.borrow_mut().push(watch.clone());
        watch
    }

    /// What the executable complained of and the scenario had not announced.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.watches.borrow().iter().flat_map(Watch::unannounced).collect()
    }

    /// Everything the executable has logged in this case.
    pub(crate) fn logs(&self) -> Vec<PathBuf> {
        self.watches.borrow().iter().map(|watch| watch.log.clone()).collect()
    }

    /// Where the logs are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// A log of the executable, and the complaints that are expected in it.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    /// Standard output and error.
    pub(crate) log: PathBuf,
    announced: Rc<RefCell<Vec<String>>>,
}

impl Watch {
    /// From here on a complaint with these words in it is expected.
    pub(crate) fn announce(&self, words: &str) {
        self.announced.borrow_mut().push(words.to_owned());
    }

    pub(crate) fn text(&self) -> String {
        fs::read(&self.log).map(|octets| String::from_utf8_lossy(&octets).into_owned()).unwrap_or_default()
    }

    fn unannounced(&self) -> Vec<String> {
        let announced = self.announced.borrow();
        let text = self.text();
        let complaints = text.lines().filter(|line| is_complaint(line));
        let unexpected = complaints.filter(|line| !announced.iter().any(|words| line.contains(words)));
        unexpected.map(str::to_owned).collect()
    }
}

/// Whether a line of the log says that something is wrong. The log is JSON, a line an event; what is not JSON was
/// said before logging began, or by a panic.
pub(crate) fn is_complaint(line: &str) -> bool {
    match serde_json::from_str::<Value>(line) {
        Ok(event) => {
            let level = event.get("level").and_then(Value::as_str).unwrap_or_default();
            level.eq_ignore_ascii_case("warn") || level.eq_ignore_ascii_case("error")
        }
        Err(_) => {
            let line = line.to_ascii_lowercase();
            ["panicked", "error", "warn"].iter().any(|word| line.contains(word))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_errors_and_panics_are_complaints() {
        for line in [
            r#"{"timestamp":"t","level":"WARN","fields":{"message":"m"}}"#,
            r#"{"level":"error","message":"m"}"#,
            "thread 'main' panicked at src/main.rs:1:1:",
            "Error: no such file",
        ] {
            assert!(is_complaint(line), "{line}");
        }
        for line in [r#"{"level":"INFO","fields":{"message":"no error here"}}"#, "listening", ""] {
            assert!(!is_complaint(line), "{line}");
        }
    }

    #[test]
    fn only_announced_complaints_are_forgiven() {
        let directory = std::env::temp_dir().join(format!("e2e-case-{}", std::process::id()));
        let case = Case::new(Path::new("waypost"), "p".to_owned(), directory.clone()).unwrap();
        let watch = case.watch();
        fs::write(
            &watch.log,
            "{\"level\":\"WARN\",\"message\":\"disk full\"}\n{\"level\":\"WARN\",\"message\":\"b\"}\n",
        )
        .unwrap();
        watch.announce("disk full");
        assert_eq!(case.complaints(), [r#"{"level":"WARN","message":"b"}"#]);
        fs::remove_dir_all(directory).unwrap();
    }
}
