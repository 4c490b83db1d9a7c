//! `waypost explain --pcap`: the engine over a file of captured packets.

use crate::{
    cli::RunningNode,
    config::FileUse,
    exit::{Exit, Failure},
    file, path, say,
};
use discovery_core::{
    capture::Capture,
    dry::{Dry, Told},
    engine::Verdict,
};
use serde::Serialize;
use std::{fmt::Write, path::Path};

/// Says what would become of every connection in the file.
pub(crate) fn explain(node: &RunningNode, pcap: &Path) -> Result<Exit, Failure> {
    let config = node.config.as_deref().ok_or_else(|| Failure::say(Exit::Usage, "--pcap needs -c FILE"))?;
    let loaded = file::read(config, FileUse::Ignore)?;
    let config = file::usable(&loaded, config)?;
    let wrong =
        |why: &dyn std::fmt::Display| Failure::say(Exit::Usage, format_args!("{}: {why}", pcap.display()));
    let unread = |error: std::io::Error| Failure::io(pcap.display().to_string(), error);
    let octets = std::fs::metadata(pcap).map_err(unread)?.len();
    if octets > FILE_OCTETS_MAX {
        return Err(wrong(&format_args!(
            "{octets} octets, and {FILE_OCTETS_MAX} are read at most; cut it: editcap -c 1000000 IN OUT"
        )));
    }
    let octets = std::fs::read(pcap).map_err(unread)?;
    let capture = Capture::open(&octets).map_err(|error| wrong(&error))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the system gives no events", error))?;
    let mut dry = runtime.block_on(path::dry(config))?;
    let mut cut = None;
    for packet in capture {
        match packet {
            Ok(packet) => dry.handle_packet(&packet),
            Err(error) => cut = Some(error),
        }
    }
    if node.json {
        say::line(json(&dry)?);
    } else {
        say::text(describe(&dry));
    }
    match cut {
        // What stands before the mistake has been told.
        Some(error) => Err(wrong(&error)),
        None => Ok(Exit::Fine),
    }
}

/// It is read whole.
const FILE_OCTETS_MAX: u64 = 1 << 30;

fn describe(dry: &Dry) -> String {
    let mut out = String::new();
    for told in dry.told() {
        let Told { protocol, flow, ruled, .. } = told;
        let _ = writeln!(out, "{protocol} {} -> {}", flow.client, flow.server);
        let _ = writeln!(out, "  {:<9} {ruled}", "rules");
        for step in &told.steps {
            let times = if step.times > 1 { format!(", {} times", step.times) } else { String::new() };
            let _ =
                writeln!(out, "  {:<9} {}, because {}{times}", step.what, word(step.verdict), step.reason);
        }
    }
    let counts = dry.counts();
    let _ = writeln!(out, "{} packets, {} connections and flows", counts.packets, dry.told().len());
    for (n, what) in [
        (counts.begun_before, "packets of connections that began before the capture: left as they are"),
        (counts.beyond, "packets of connections beyond those that are told"),
    ] {
        if n > 0 {
            let _ = writeln!(out, "{n} {what}");
        }
    }
    if counts.unread > 0 {
        let why: Vec<String> = dry.unread().map(|(why, n)| format!("{why} {n}")).collect();
        let _ = writeln!(out, "{} packets are not read, and pass: {}", counts.unread, why.join(", "));
    }
    out
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "passes",
        Verdict::PassWithQuery => "passes with the query",
        Verdict::Drop => "is taken off the way",
    }
}

#[derive(Serialize)]
struct Report {
    flows: Vec<FlowReport>,
    packets: u64,
    begun_before: u64,
    unread: u64,
    beyond: u64,
}

#[derive(Serialize)]
struct FlowReport {
    protocol: String,
    client: String,
    server: String,
    rule: String,
    packets: u64,
    steps: Vec<StepReport>,
}

#[derive(Serialize)]
struct StepReport {
    what: &'static str,
    verdict: &'static str,
    reason: &'static str,
    times: u64,
}

fn json(dry: &Dry) -> Result<String, Failure> {
    let verdict = |verdict| match verdict {
        Verdict::Pass => "pass",
        Verdict::PassWithQuery => "pass-with-query",
        Verdict::Drop => "taken",
    };
    let flows = dry.told().iter().map(|told| FlowReport {
        protocol: told.protocol.to_string(),
        client: told.flow.client.to_string(),
        server: told.flow.server.to_string(),
        rule: told.ruled.to_string(),
        packets: told.packets,
        steps: told
            .steps
            .iter()
            .map(|step| StepReport {
                what: step.what,
                verdict: verdict(step.verdict),
                reason: step.reason.word(),
                times: step.times,
            })
            .collect(),
    });
    let counts = dry.counts();
    let report = Report {
        flows: flows.collect(),
        packets: counts.packets,
        begun_before: counts.begun_before,
        unread: counts.unread,
        beyond: counts.beyond,
    };
    serde_json::to_string(&report).map_err(|error| Failure::new(Exit::Bug, error))
}
