//! Kernel settings without which packets that are not for us, and yet are, get lost. What they were is written to a
//! file before they are changed, so that they can be put back after a kill, too.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::plan::{Mode, Plan};

/// A setting and the value it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// Below `/proc/sys/net`.
    pub(super) path: String,
    pub(super) value: &'static str,
}

/// The settings of a plan. Forwarding is not among them: whoever routes has decided to.
pub(super) fn needed(plan: &Plan) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut need = |path: String, value| settings.push(Setting { path, value });
    // A connection of ours has a foreign source: a filter on the way back would drop it. The larger of `all` and
    // the interface's own value counts.
    let interfaces = match &plan.spec.mode {
        Mode::Routed { interfaces } | Mode::Host { interfaces, .. } => interfaces.as_slice(),
        Mode::Bridge { bridge, .. } => std::slice::from_ref(bridge),
    };
    let filtered = ["all", "lo"].into_iter().chain(interfaces.iter().map(|interface| interface.as_str()));
    for interface in filtered {
        need(format!("ipv4/conf/{interface}/rp_filter"), "0");
    }
    // What a server says comes in again from an address of this machine, turned to a proxy.
    if plan.spec.deflecting.is_some() {
        for interface in interfaces {
            need(format!("ipv4/conf/{interface}/accept_local"), "1");
        }
    }
    // A listener that answers with cookies keeps no half-open socket that a rule could find.
    need("ipv4/tcp_syncookies".to_owned(), "0");
    // Errors of the own stack about a connection of ours carry its mark, by which they find its socket.
    need("ipv4/fwmark_reflect".to_owned(), "1");
    if plan.v6() {
        need("ipv6/fwmark_reflect".to_owned(), "1");
    }
    match &plan.spec.mode {
        Mode::Routed { .. } => {}
        Mode::Bridge { bridge, tagged, .. } => {
            need("bridge/bridge-nf-call-iptables".to_owned(), "1");
            if plan.v6() {
                need("bridge/bridge-nf-call-ip6tables".to_owned(), "1");
            }
            if *tagged {
                need("bridge/bridge-nf-filter-vlan-tagged".to_owned(), "1");
            }
            // The bridge has routes to both sides and would tell hosts about them.
            need("ipv4/conf/all/send_redirects".to_owned(), "0");
            need(format!("ipv4/conf/{bridge}/send_redirects"), "0");
        }
        Mode::Host { host, .. } => {
            if host.takes_own_servers() {
                // The server's answers then carry the bit that routes them to us.
                need("ipv4/tcp_fwmark_accept".to_owned(), "1");
            }
        }
    }
    settings
}

/// Settings that say that this machine does not forward, although it is to stand on a routed path. They are told,
/// never changed.
#[must_use]
pub fn forwarding_off(plan: &Plan) -> Vec<&'static str> {
    let mut off = Vec::new();
    if matches!(plan.spec.mode, Mode::Routed { .. }) {
        if read("ipv4/ip_forward").is_ok_and(|value| value == "0") {
            off.push("net.ipv4.ip_forward");
        }
        if plan.v6() && read("ipv6/conf/all/forwarding").is_ok_and(|value| value == "0") {
            off.push("net.ipv6.conf.all.forwarding");
        }
    }
    off
}

/// Values as they were, by path; kept in a file.
#[derive(Debug)]
pub(super) struct Saved {
    file: PathBuf,
}

impl Saved {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// Changes what differs; returns how many did. The first value that was found is the one that is put back,
    /// however often this is called.
    pub(super) fn apply(&self, settings: &[Setting]) -> Result<u32, SysctlError> {
        let mut saved = self.load();
        let mut differing = Vec::new();
        for setting in settings {
            let value = read(&setting.path).map_err(|error| SysctlError::new(&setting.path, error))?;
            if value != setting.value {
                saved.entry(setting.path.clone()).or_insert(value);
                differing.push(setting);
            }
        }
        if differing.is_empty() {
            return Ok(0);
        }
        self.store(&saved).map_err(|error| SysctlError::file(&self.file, error))?;
        for setting in &differing {
            write(&setting.path, setting.value).map_err(|error| SysctlError::new(&setting.path, error))?;
        }
        Ok(u32::try_from(differing.len()).unwrap_or(u32::MAX))
    }

    /// Puts back what was changed; an interface that is gone needs nothing.
    pub(super) fn restore(&self) -> Result<(), SysctlError> {
        for (path, value) in self.load() {
            match write(&path, &value) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SysctlError::new(&path, error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SysctlError::file(&self.file, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// A file that cannot be read holds nothing to put back: the settings stay as they are.
    fn load(&self) -> BTreeMap<String, String> {
        parse(&fs::read_to_string(&self.file).unwrap_or_default())
    }

    fn store(&self, saved: &BTreeMap<String, String>) -> io::Result<()> {
        let text: String = saved.iter().map(|(path, value)| format!("{path}={value}\n")).collect();
        let aside = self.file.with_extension("new");
        fs::write(&aside, text)?;
        fs::rename(aside, &self.file)
    }
}

/// Lines `path=value`. The file is root's own, but a wrong line must not make root write elsewhere.
fn parse(text: &str) -> BTreeMap<String, String> {
    let plain = |path: &str| {
        let known = ["ipv4/", "ipv6/", "bridge/"].iter().any(|start| path.starts_with(start));
        known && !path.split('/').any(|part| part == "..")
    };
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines.filter(|(path, _)| plain(path)).map(|(path, value)| (path.to_owned(), value.to_owned())).collect()
}

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {error}")]
pub struct SysctlError {
    what: String,
    #[source]
    error: io::Error,
}

impl SysctlError {
    fn new(path: &str, error: io::Error) -> Self {
        Self { what: format!("kernel setting net/{path}"), error }
    }

    fn file(path: &Path, error: io::Error) -> Self {
        Self { what: format!("{} (kernel settings as they were)", path.display()), error }
    }
}

fn read(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(Path::new("/proc/sys/net").join(path))?.trim().to_owned())
}

fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/sys/net").join(path), value)
}

#[cfg(test)]
mod tests {
    use super::super::plan::Host;
    use super::super::plan::tests_support::{bridge, host, routed};
    use super::*;

    fn paths(plan: &Plan) -> Vec<String> {
        needed(plan).into_iter().map(|setting| format!("{}={}", setting.path, setting.value)).collect()
    }

    #[test]
    fn each_mode_asks_for_what_it_needs() {
        let routed = paths(&routed());
        assert!(routed.contains(&"ipv4/conf/wan0/rp_filter=0".to_owned()), "{routed:?}");
        assert!(routed.contains(&"ipv4/conf/all/rp_filter=0".to_owned()), "{routed:?}");
        assert!(routed.contains(&"ipv4/tcp_syncookies=0".to_owned()), "{routed:?}");
        assert!(!routed.iter().any(|path| path.contains("forward")), "never turned on silently: {routed:?}");
        let bridge = paths(&bridge());
        assert!(bridge.contains(&"bridge/bridge-nf-call-ip6tables=1".to_owned()), "{bridge:?}");
        assert!(!bridge.iter().any(|path| path.contains("vlan") || path.contains("p0")), "{bridge:?}");
        assert!(paths(&host(Host::Server)).contains(&"ipv4/tcp_fwmark_accept=1".to_owned()));
        assert!(!paths(&host(Host::Client)).contains(&"ipv4/tcp_fwmark_accept=1".to_owned()));
    }

    #[test]
    fn a_foreign_line_in_the_file_is_left_alone() {
        let text = "ipv4/tcp_syncookies=1\nipv4/../../kernel/core_pattern=|x\n/etc/passwd=x\nnonsense\n";
        let parsed = parse(text);
        assert_eq!(
            parsed.into_iter().collect::<Vec<_>>(),
            [("ipv4/tcp_syncookies".to_owned(), "1".to_owned())]
        );
    }
}
