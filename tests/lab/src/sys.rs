//! The system calls that std does not offer: network namespaces, TUN devices, exact waits, the file system's
//! shutdown. The only unsafe code of the lab; every function here is safe to call with any argument.
#![allow(unsafe_code, reason = "ioctl, setns, ppoll and sched_setscheduler have no safe wrapper in std")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// Moves the calling thread, and only it, into the named network namespace (`ip netns`).
///
/// # Errors
/// When the namespace does not exist or the caller is not root.
pub fn enter_netns(name: &str) -> io::Result<()> {
    let file = File::open(Path::new("/run/netns").join(name))?;
    // SAFETY: setns takes a descriptor that `file` keeps open for the call, and touches no memory of ours.
    let done = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens (and so creates) a TUN device of layer 3 without packet information in the thread's own namespace.
/// It lives as long as the returned file, which does not block.
///
/// # Errors
/// When the name is longer than 15 octets, or the kernel refuses.
pub fn open_tun(name: &str) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() || name.bytes().any(|octet| !octet.is_ascii_graphic()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an interface name has 1 to 15 printable octets",
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).unwrap_or_default();
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is, and the name ends in a zero octet.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
}

/// Waits until one of `files` can be read or `timeout` has passed; `None` waits for ever. Exact to tens of
/// microseconds, which the millisecond steps of poll are not.
///
/// # Errors
/// What ppoll reports, except interruption, which counts as a wake-up.
pub fn wait_readable<const N: usize>(
    files: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<()> {
    let mut polls = files.map(|file| libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let wait = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos().cast_signed()),
    });
    let wait = wait.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = libc::nfds_t::try_from(N).unwrap_or(0);
    // SAFETY: `polls` has N entries and `wait` is null or points at a timespec that outlives the call.
    let done = unsafe { libc::ppoll(polls.as_mut_ptr(), count, wait, std::ptr::null()) };
    if done >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// Asks for real-time scheduling of the calling thread, so that packets leave on time on a busy machine.
/// Returns whether it was granted; without it the emulator is late more often, and counts that.
pub fn prefer_on_time() -> bool {
    // SAFETY: sched_param is plain data for which all zeroes is a value.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = 10;
    // SAFETY: thread 0 is the caller; the pointer is to a live sched_param.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const param) == 0 }
}

/// Sends `signal` to a process that the caller knows to be its own.
///
/// # Errors
/// When the process is gone or belongs to somebody else.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a single process"));
    }
    // SAFETY: kill touches no memory; `pid` names exactly one process, as checked.
    let done = unsafe { libc::kill(pid, signal) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the process runs as root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Shuts a mounted ext4 or XFS down at once without flushing its journal: what was not synced is lost and
/// every later access fails, as after a power cut.
///
/// # Errors
/// When the path is not on such a file system, or the caller is not root.
pub fn shutdown_file_system(mountpoint: &Path) -> io::Result<()> {
    /// `_IOR('X', 125, __u32)`, Linux's FS_IOC_SHUTDOWN.
    const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
    /// FS_SHUTDOWN_FLAGS_NOLOGFLUSH.
    const NO_LOG_FLUSH: u32 = 2;
    let directory = File::open(mountpoint)?;
    let flags: u32 = NO_LOG_FLUSH;
    // SAFETY: the ioctl reads one u32, which `flags` is.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_SHUTDOWN, &raw const flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One thread of another process, standing still while this value lives.
#[derive(Debug)]
pub struct StoppedThread {
    release: Option<std::sync::mpsc::Sender<()>>,
    tracer: Option<std::thread::JoinHandle<()>>,
}

/// Makes one thread of another process stand still, and no other: a signal would stop them all.
///
/// # Errors
/// The system's: no such thread, or somebody traces it already.
pub fn stop_thread(thread: i32) -> io::Result<StoppedThread> {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    // Only the thread that attached may let go.
    let tracer = std::thread::spawn(move || {
        let stopped = trace(libc::PTRACE_SEIZE, thread).and_then(|()| trace(libc::PTRACE_INTERRUPT, thread));
        let stopped = stopped.and_then(|()| {
            let mut status = 0;
            // SAFETY: waitpid writes one int, and `status` is one that lives until it returns.
            let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
            if waited < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
        let goes_on = stopped.is_ok();
        drop(tell.send(stopped));
        if goes_on {
            let _released = released.recv();
            drop(trace(libc::PTRACE_DETACH, thread));
        }
    });
    told.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
    Ok(StoppedThread { release: Some(release), tracer: Some(tracer) })
}

fn trace(request: libc::c_uint, thread: i32) -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: none of the requests made here reads or writes memory through its two last arguments.
    if unsafe { libc::ptrace(request, thread, none, none) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(tracer) = self.tracer.take() {
            drop(tracer.join());
        }
    }
}
