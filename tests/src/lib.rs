//! Tests that belong to no single crate: tidiness now, the simulated months later.
