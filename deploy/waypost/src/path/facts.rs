//! What the kernel knows of the link's connections.

use discovery_linux::tcp_info::{set_pacing_rate_max, tcp_info};
use std::{io, os::fd::BorrowedFd};
use wan::TcpFacts;
use wan_core::pace::Sample;

pub(super) struct Kernel;

impl TcpFacts for Kernel {
    fn sample(&self, socket: BorrowedFd<'_>) -> io::Result<Sample> {
        let info = tcp_info(socket)?;
        Ok(Sample {
            srtt: info.rtt,
            min_rtt: info.rtt_min.unwrap_or(info.rtt),
            delivered: info.delivery_rate,
            app_limited: info.delivery_limited_by_us,
            busy: info.unacked > 0,
        })
    }

    fn set_pace(&self, socket: BorrowedFd<'_>, octets: u64) -> io::Result<()> {
        set_pacing_rate_max(socket, Some(octets))
    }
}
