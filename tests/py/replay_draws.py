"""Replays the draws of stored plans, by an implementation of its own: docs/draws.md, the standard library, nothing else.

Usage: replay_draws.py [--secret HEX] FILE

FILE holds plans as `troop plan --format json` prints them: one object, one object a line, or a list. Each plan needs its
published day key; with the site's secret (64 hexadecimal digits) keys are derived, and those that are published are
compared with them. Recomputes `unit`, `fell` and `minute` of every entry. Exits 1 and lists what disagrees, else 0.
"""

import argparse
import hmac
import json
import sys


class Draws:
    """The stream of draws of one scope and monkey on one day."""

    def __init__(self, day_key, draw_key, monkey):
        self.day_key = day_key
        self.prefix = f"{draw_key}|{monkey}|"
        self.count = 0

    def draw(self):
        message = f"{self.prefix}{self.count}".encode()
        self.count += 1
        return int.from_bytes(hmac.digest(self.day_key, message, "sha256")[:8], "big")

    def unit(self):
        return (self.draw() >> 11) / 2**53

    def below(self, bound):
        limit = 2**64 - 2**64 % bound
        while True:
            draw = self.draw()
            if draw < limit:
                return draw % bound


def read(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        value = json.loads(text)
        plans = value if isinstance(value, list) else [value]
    except json.JSONDecodeError:
        plans = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not plans:
        raise ValueError("it holds no plan")
    return plans


def key_of(plan, secret):
    """The plan's day key, and what is wrong with it, if anything."""
    published = plan["day_key"]
    if secret is None:
        if published is None:
            return None, "its day key is not published"
        return bytes.fromhex(published), None
    key = hmac.digest(secret, f"troop/1|{plan['day']}|{plan['team']}".encode(), "sha256")
    if published is not None and published != key.hex():
        return key, f"the published day key is {published}, the secret's is {key.hex()}"
    return key, None


def replay(plan, entry, day_key):
    """How many draws of the entry agree, and what does not."""
    wrong = []

    def expect(what, stored, computed):
        if type(stored) is not type(computed) or stored != computed:
            wrong.append(f"{what} is {stored!r}, replayed {computed!r}")

    expect("day", entry["day"], plan["day"])
    expect("team", entry["team"], plan["team"])
    if entry["unit"] is None:
        # Nothing was drawn, so nothing may stand there as if something had been.
        expect("fell", entry["fell"], None)
        expect("minute", entry["minute"], None)
        return 0, wrong
    draws = Draws(day_key, entry["draw_key"], entry["monkey"])
    unit = draws.unit()
    fell = unit < entry["odds"]
    minute = draws.below(entry["window_minutes"]) if fell else None
    # JSON knows one kind of number: a unit of 0 may be written without a point.
    expect("unit", float(entry["unit"]), unit)
    expect("fell", entry["fell"], fell)
    expect("minute", entry["minute"], minute)
    return (2 if fell else 1) if not wrong else 0, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secret", metavar="HEX", type=bytes.fromhex, help="the site's secret, 64 hexadecimal digits")
    parser.add_argument("file")
    args = parser.parse_args()
    if args.secret is not None and len(args.secret) != 32:
        parser.error("a secret has 64 hexadecimal digits")
    try:
        plans = read(args.file)
    except (OSError, ValueError) as error:
        print(f"{args.file} cannot be read: {error}", file=sys.stderr)
        return 1
    agreed, disagreements = 0, []
    for plan in plans:
        name = f"{plan['day']} {plan['team']}"
        key, wrong = key_of(plan, args.secret)
        if wrong is not None:
            disagreements.append(f"{name}: {wrong}")
        if key is None:
            continue
        for entry in plan["entries"]:
            try:
                count, wrong = replay(plan, entry, key)
            except (KeyError, TypeError, ZeroDivisionError) as error:
                count, wrong = 0, [f"it cannot be replayed: {error!r}"]
            agreed += count
            disagreements.extend(f"{name} {entry['draw_key']} {entry['monkey']}: {what}" for what in wrong)
    for line in disagreements:
        print(line)
    if disagreements:
        print(f"{agreed} draws agree, {len(disagreements)} things do not")
        return 1
    print(f"{agreed} draws agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
