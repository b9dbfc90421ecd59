//! Verdicts on their way to the kernel.
//!
//! A queue numbers its packets as they come, from 1. While they leave in that order, one message lets all of them pass up to a number; and the
//! kernel finds the first at once, where it looks for any other through all that wait before it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, AsRawFd as _};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

use super::wire::{self, Verdict};
use crate::netlink::Netlink;

/// More than can wait. With so many a packet was never heard of.
const AHEAD_MAX: usize = 1 << 18;

/// See the module.
#[derive(Debug)]
pub(super) struct Pending {
    queue: u16,
    /// What packets carry that pass.
    mark: Option<u32>,
    pub(super) datagram: Vec<u8>,
    /// All up to this number have a verdict.
    decided: u32,
    /// Those beyond that have one.
    ahead: BTreeSet<u32>,
    /// Some of those up to `decided` are to pass, and no message says so yet.
    passing: bool,
    /// Not all numbers were heard of.
    one_by_one: bool,
}

impl Pending {
    pub(super) fn new(queue: u16, mark: Option<u32>) -> Self {
        let (datagram, ahead) = (Vec::new(), BTreeSet::new());
        Self { queue, mark, datagram, decided: 0, ahead, passing: false, one_by_one: false }
    }

    pub(super) fn pass(&mut self, packet: u32) {
        if !self.one_by_one && packet == self.decided.wrapping_add(1) {
            self.passing = true;
            return self.decide(packet);
        }
        self.one(packet, Verdict::Pass { mark: self.mark });
    }

    pub(super) fn lose(&mut self, packet: u32) {
        self.one(packet, Verdict::Lose);
    }

    /// Hands what there is to the kernel, which takes it within the call.
    pub(super) fn hand_over(&mut self, net: &Netlink) {
        self.say();
        if self.datagram.is_empty() {
            return;
        }
        // What it refuses is of packets that are gone with their device.
        while send(net.as_fd().as_raw_fd(), &self.datagram, MsgFlags::empty()) == Err(Errno::EINTR) {}
        self.datagram.clear();
    }

    fn one(&mut self, packet: u32, verdict: Verdict) {
        // Those before it leave before it.
        self.say();
        wire::put_verdict(&mut self.datagram, self.queue, packet, verdict);
        if self.one_by_one {
            return;
        }
        if packet == self.decided.wrapping_add(1) {
            return self.decide(packet);
        }
        self.ahead.insert(packet);
        if self.ahead.len() > AHEAD_MAX {
            self.one_by_one = true;
            self.ahead = BTreeSet::new();
        }
    }

    fn decide(&mut self, packet: u32) {
        self.decided = packet;
        while self.ahead.remove(&self.decided.wrapping_add(1)) {
            self.decided = self.decided.wrapping_add(1);
        }
    }

    fn say(&mut self) {
        if std::mem::take(&mut self.passing) {
            let verdict = Verdict::Pass { mark: self.mark };
            wire::put_verdict_up_to(&mut self.datagram, self.queue, self.decided, verdict);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASS: Verdict = Verdict::Pass { mark: None };

    fn pending() -> Pending {
        Pending::new(3, None)
    }

    fn expected(verdicts: &[(bool, u32, Verdict)]) -> Vec<u8> {
        let mut datagram = Vec::new();
        for (up_to, packet, verdict) in verdicts {
            let put = if *up_to { wire::put_verdict_up_to } else { wire::put_verdict };
            put(&mut datagram, 3, *packet, *verdict);
        }
        datagram
    }

    #[test]
    fn what_leaves_in_its_order_is_one_message() {
        let mut pending = pending();
        (1..=9).for_each(|packet| pending.pass(packet));
        pending.say();
        assert_eq!(pending.datagram, expected(&[(true, 9, PASS)]));
    }

    #[test]
    fn one_that_is_lost_is_said_between_those_around_it() {
        let mut pending = pending();
        pending.pass(1);
        pending.lose(2);
        pending.pass(3);
        pending.say();
        assert_eq!(pending.datagram, expected(&[(true, 1, PASS), (false, 2, Verdict::Lose), (true, 3, PASS)]));
    }

    #[test]
    fn nobody_is_let_go_by_a_message_about_another() {
        // 1 and 2 are held, 4 is lost and 3 passes them; then 1 and 2 leave.
        let mut pending = pending();
        pending.lose(4);
        pending.pass(3);
        pending.pass(1);
        pending.say();
        let one_by_one = [(false, 4, Verdict::Lose), (false, 3, PASS), (true, 1, PASS)];
        assert_eq!(pending.datagram, expected(&one_by_one));
        pending.datagram.clear();
        pending.pass(2);
        pending.pass(5);
        pending.say();
        assert_eq!(pending.datagram, expected(&[(true, 5, PASS)]));
    }

    #[test]
    fn a_number_that_was_never_heard_of_lets_each_have_its_own_message() {
        let mut pending = pending();
        let last = u32::try_from(AHEAD_MAX).unwrap() + 3;
        (2..=last).for_each(|packet| pending.pass(packet));
        assert!(pending.one_by_one && pending.ahead.is_empty());
        pending.datagram.clear();
        pending.pass(1);
        pending.say();
        assert_eq!(pending.datagram, expected(&[(false, 1, PASS)]));
    }
}
