//! The planes for kernels without netem, on this kernel, by an ordinary user unless one is root's: every test makes a host and a peer of its own.
#![cfg(test)]
#![expect(clippy::print_stdout, reason = "figures that a reader of the run wants")]

#[path = "forward/asked.rs"]
mod asked;
#[path = "forward/delay.rs"]
mod delay;
#[path = "forward/end.rs"]
mod end;
#[path = "forward/flood.rs"]
mod flood;
#[path = "forward/group.rs"]
#[expect(dead_code, reason = "the tests of leases need more of it")]
mod group;
#[path = "hold/mod.rs"]
mod hold;
#[path = "forward/loss.rs"]
mod loss;
#[path = "forward/owner.rs"]
mod owner;
#[path = "forward/speed.rs"]
mod speed;
#[path = "tun/mod.rs"]
mod tun;
#[path = "forward/world.rs"]
mod world;
