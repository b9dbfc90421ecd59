use super::*;

#[test]
fn tunnels_to_a_disabled_group_are_cut_when_its_drain_is_over_and_not_before() {
    let mut bench = bench();
    bench.serving();
    bench.create("hello-web-v001");
    bench.resize("hello-web-v001", 3);
    bench.pass(BOOT * 2);
    bench.flip("hello-web-v001");
    let old = name("hello-web-v000");
    // Longer than its answer is waited for: the answer comes, and the drain goes on.
    bench.done(Step::Disable { group: old.clone(), drain: Duration::from_secs(30) });
    bench.pass(Duration::from_secs(29));
    assert!(bench.controller.routes.drained.is_empty(), "{:?}", bench.controller.routes);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.controller.routes.drained, bench.ids("hello-web-v000"));
    // It may serve again, and be disabled again: that is a drain of its own.
    bench.done(Step::Enable { group: old.clone() });
    bench.pass(Duration::from_secs(1));
    assert!(bench.controller.routes.drained.is_empty());
    bench.done(Step::Disable { group: old, drain: Duration::ZERO });
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.controller.routes.drained.len(), 3);
}
