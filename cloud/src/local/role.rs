//! Handing listeners and other descriptors to a role inside the sandbox.
//!
//! A role's standard input is one end of a unix stream socket; the supervisor holds the other. Over it come the
//! descriptors, each message one byte and one JSON line of names. Numbers are never passed: turning a bare number
//! into an owned descriptor is `unsafe`, while receiving one over a socket is not.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Most descriptors one role may be handed: a listener for people, one for agents, and room. The kernel's own limit for
/// one message is 253.
const FDS_MAX: usize = 16;
/// Longest list of names, as JSON.
const NAMES_MAX_BYTES: usize = 4096;

/// Tells a role the pid of the helper that started it, where both number processes alike: without a sandbox.
pub(crate) const HELPER_PID: &str = "TROOP_HELPER_PID";

/// What a role was started with.
#[derive(Debug)]
pub struct Inherited {
    /// Listeners and the like, by the name the supervisor gave them.
    pub fds: BTreeMap<String, OwnedFd>,
    /// The line to the supervisor: at its end once the supervisor is gone. Keep it as long as the role lives.
    pub line: UnixStream,
}

/// Puts the named descriptors on the line; they wait there until the role takes them.
pub(crate) fn send_fds(line: &UnixStream, fds: &[(String, BorrowedFd<'_>)]) -> std::io::Result<()> {
    let too_many = || std::io::Error::new(std::io::ErrorKind::InvalidInput, "too many descriptors for one role");
    let names: Vec<&str> = fds.iter().map(|(name, _)| name.as_str()).collect();
    let mut text = serde_json::to_vec(&names)?;
    text.push(b'\n');
    if fds.len() > FDS_MAX || text.len() > NAMES_MAX_BYTES {
        return Err(too_many());
    }
    let raw: Vec<BorrowedFd<'_>> = fds.iter().map(|(_, fd)| *fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !raw.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&raw)) {
        return Err(too_many());
    }
    let sent = sendmsg(line.as_fd(), &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == text.len() { Ok(()) } else { Err(std::io::Error::other("the line to a role took only a part")) }
}

/// Makes `command` a role that this very thread starts and that dies with it, without a sandbox around it: hands it the
/// named descriptors, and returns the line to it. For whoever measures a role alone; what runs for people is started by
/// [`super::sandbox::Sandbox::enter`].
///
/// # Errors
/// When the descriptors cannot be handed over.
pub fn hand(command: &mut Command, fds: &[(&str, BorrowedFd<'_>)]) -> std::io::Result<UnixStream> {
    let (line, theirs) = UnixStream::pair()?;
    let named: Vec<_> = fds.iter().map(|(name, fd)| ((*name).to_owned(), fd.as_fd())).collect();
    send_fds(&line, &named)?;
    command.env(HELPER_PID, std::process::id().to_string()).stdin(Stdio::from(OwnedFd::from(theirs)));
    Ok(line)
}

/// First thing a role does: to die with the helper that started it, and to take what it was handed.
///
/// # Errors
/// When it was not started by [`super::sandbox::Sandbox::enter`], or the supervisor has died meanwhile.
pub fn begin_role() -> std::io::Result<Inherited> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // In the sandbox the helper is outside this pid namespace and reads as no parent; once it has died, the sandbox's
    // first process has adopted us and reads as 1. Without one it reads as what it said.
    let helper = std::env::var(HELPER_PID).ok().and_then(|pid| pid.parse().ok());
    if rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()) != helper {
        return Err(std::io::Error::other("the helper that started this role has died"));
    }
    receive(UnixStream::from(super::steps::own_stdin()?))
}

fn receive(line: UnixStream) -> std::io::Result<Inherited> {
    let mut text = vec![0; NAMES_MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(line.as_fd(), &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let names: Vec<String> = serde_json::from_slice(&text[..got.bytes])?;
    let mut owned = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            owned.extend(fds);
        }
    }
    if owned.len() != names.len() {
        return Err(std::io::Error::other("descriptors were lost on the way to a role"));
    }
    Ok(Inherited { fds: names.into_iter().zip(owned).collect(), line })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_listener_arrives_under_its_name() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        send_fds(&ours, &[("web".into(), listener.as_fd())]).unwrap();
        let mut got = receive(theirs).unwrap();
        let received = TcpListener::from(got.fds.remove("web").unwrap());
        assert_eq!(received.local_addr().unwrap(), listener.local_addr().unwrap());
    }

    #[test]
    fn a_role_may_be_handed_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send_fds(&ours, &[]).unwrap();
        assert!(receive(theirs).unwrap().fds.is_empty());
    }

    #[test]
    fn a_supervisor_that_is_gone_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert!(receive(theirs).is_err());
    }
}
