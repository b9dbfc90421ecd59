"""Checks the summary that `troop demo --summary FILE` wrote: what the demo promises is what it measured."""
import json
import sys


def main(path):
    with open(path, encoding="utf-8") as file:
        demo = json.load(file)
    wrong = []

    def expect(what, holds):
        if not holds:
            wrong.append(what)

    phases = {phase["name"]: phase for phase in demo["phases"]}
    expect("phases steady, kill and push", {"steady", "kill", "push"} <= phases.keys())
    for name, phase in phases.items():
        parts = phase["in_flight_to_killed"] + phase["by_bad_version"] + phase["other"]
        expect(f"{name}: failed is the sum of its parts", phase["failed"] == parts)
        expect(f"{name}: nothing failed for another reason", phase["other"] == 0)
        expect(f"{name}: requests were sent", phase["sent"] > 100)
    expect("steady: nothing failed", phases["steady"]["failed"] == 0)
    expect("push: no request was in flight to a kill", phases["push"]["in_flight_to_killed"] == 0)
    expect("two kills, one drawn and one on demand", [kill["how"] for kill in demo["kills"]] == ["draw", "demand"])
    latency = demo["latency"]
    if demo["isolation"] == "namespaces" or latency:
        expect("the latency chapter was told", latency is not None)
    if latency:
        before, during, after = latency["before_ms"], latency["during_ms"], latency["after_ms"]
        expect(f"round trips were measured: {latency}", None not in (before, during, after))
        expect(f"the delay was there, and not early: {during} ms", during >= latency["delay_ms"])
        expect(f"the delay was no more than half as long again: {during} ms", during < 1.5 * latency["delay_ms"])
        expect(f"the delay is gone: {after} ms", after < before + latency["delay_ms"] / 2)
    expect("every kill healed", all(kill["healed"] and kill["heal_seconds"] > 0 for kill in demo["kills"]))
    results = [push["result"] for push in demo["pushes"]]
    expect(f"pushes ended as promised: {results}", results == ["serving", "serving", "never_ready", "rolled_back"])
    expect("the bad version answered some requests itself", phases["push"]["by_bad_version"] > 0)
    expect("quiet-web was never touched", demo["spared_touched"] == 0)
    expect("nothing is left over", demo["left_over"] == 0)
    for line in wrong:
        print(f"wrong: {line}")
    print(f"{path}: {len(wrong)} promises broken in {demo['seconds']:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
