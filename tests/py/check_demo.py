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
