//! Sockets that systemd listens on and passes when it starts the agent (`sd_listen_fds(3)`).

#![expect(
    unsafe_code,
    reason = "only an unsafe call makes an owner of a descriptor that came with the process"
)]

use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, ensure};
use rustix::net::{AddressFamily, SocketType, sockopt};

/// The TCP sockets that came with the process, if any. Must be called once, before anything is opened.
///
/// # Errors
///
/// When the variables are malformed, or something else was passed than TCP sockets that listen.
pub(crate) fn listeners() -> anyhow::Result<Vec<TcpListener>> {
    let numbers = sd_notify::listen_fds().context("reading LISTEN_FDS")?;
    // SAFETY: systemd opened these for this process, as LISTEN_PID says, and nothing else here knows their
    // numbers; `listen_fds` has failed if one of them is not open.
    let all = numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    all.map(|socket| {
        let family = sockopt::socket_domain(&socket);
        let tcp = family.is_ok_and(|is| is == AddressFamily::INET || is == AddressFamily::INET6)
            && sockopt::socket_type(&socket).is_ok_and(|is| is == SocketType::STREAM)
            && sockopt::socket_acceptconn(&socket).unwrap_or_default();
        ensure!(tcp, "systemd passed something else than a TCP socket that listens");
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
    .collect()
}
