//! The planes in user space, on this kernel, by an ordinary user: every test makes a host and a peer of its own.
#![cfg(test)]
#![expect(clippy::print_stdout, reason = "figures that a reader of the run wants")]

#[path = "forward/delay.rs"]
mod delay;
#[path = "forward/end.rs"]
mod end;
#[path = "forward/loss.rs"]
mod loss;
#[path = "forward/speed.rs"]
mod speed;
#[path = "tun/mod.rs"]
mod tun;
#[path = "forward/world.rs"]
mod world;
