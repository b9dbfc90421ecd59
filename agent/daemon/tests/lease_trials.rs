//! What holds a lease may die, stand still or fall silent at any moment: the fault is gone within the lease and a second,
//! seen in the traffic of a host and a peer that each trial makes for itself.
//!
//! `TROOP_TRIALS` is how many (20), `TROOP_TRIALS_AT_ONCE` how many of them at a time (4), `TROOP_TRIALS_SEED` the first one's
//! seed; each trial draws everything from its own. `TROOP_TRIALS_STRICT` asserts also what a machine in use cannot promise,
//! `TROOP_TRIALS_AGENT` names another agent than the one that was built with the tests. `TROOP_STOPS` and `TROOP_RECONNECTS` are how many
//! times a fault is ended under load (10) and a connection closed (20). With `TROOP_TRIALS_AS_ROOT` root tries its own planes.
#![cfg(test)]
#![expect(clippy::print_stdout, reason = "figures that a reader of the run wants")]

#[path = "trials/cause.rs"]
mod cause;
#[path = "trials/control.rs"]
mod control;
#[path = "trials/cut.rs"]
mod cut;
#[path = "forward/group.rs"]
#[expect(dead_code, reason = "the tests of the forwarder need more of it")]
mod group;
#[path = "trials/host.rs"]
mod host;
#[path = "trials/order.rs"]
mod order;
#[path = "trials/probe.rs"]
mod probe;
#[path = "trials/quiet.rs"]
mod quiet;
#[path = "trials/stop.rs"]
mod stop;
#[path = "trials/table.rs"]
mod table;
#[path = "trials/trial.rs"]
mod trial;
#[path = "forward/world.rs"]
#[expect(dead_code, reason = "the tests of the forwarder need more of it")]
mod world;
