//! The plane of the TUN: as the others, and by an ordinary user where that one may open /dev/net/tun.

mod end;
mod reach;

use troop_agent::plane::tun::{Owners, TunPlane};
use troop_agent_core::fault::{Direction, Parts, Selectors};

use crate::world::*;

type Up = Applied<TunPlane>;

fn plane() -> TunPlane {
    TunPlane::open(Owners::Known).unwrap()
}

fn applied(world: &World, selectors: Selectors, parts: Parts) -> Up {
    Up::by(plane(), world, &order(fault(Direction::Egress, selectors, parts)))
}

/// As [`in_namespaces`], where a TUN can be had.
fn with_tun(name: &str, test: impl FnOnce(World)) {
    if let Err(why) = std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        assert!(std::env::var_os("CI").is_none(), "no /dev/net/tun: {why}");
        println!("skipped: no /dev/net/tun: {why}");
        return;
    }
    in_namespaces(name, test);
}

/// As the agent calls a plane: on its runtime's thread.
fn in_runtime<T>(call: impl FnOnce() -> T) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async { call() })
}

/// All that the tools see of the host's network.
fn whole() -> String {
    [state(), ip("-6 rule show"), run("nft", "list ruleset")].join("\n")
}

/// The TUN that is there.
fn device_of_ours() -> String {
    let links = ip("link show");
    links.split(' ').find(|word| word.starts_with("tr")).unwrap().trim_end_matches(':').to_owned()
}

fn to_port(number: u16) -> Selectors {
    Selectors { remote_ports: port(number), ..to(PEER) }
}

/// At least so long, and not so much longer that it would be another fault.
fn is_about(measured: std::time::Duration, asked: std::time::Duration) -> bool {
    (asked..asked + ms(150)).contains(&measured)
}
