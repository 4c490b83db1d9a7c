//! The WAN emulator: a pure link on a virtual clock, and the process part that moves real packets through it.

pub mod packet;
pub mod pipe;
pub mod tun;
