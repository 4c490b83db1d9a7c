//! EPC.
