"""Checks the Terraform example of docs/aws.md: that it parses, that each reference leads to something in it, that nothing is declared in vain, that
its role may do exactly what `troop aws policy` says and who is leashed needs, that the group is opted in, and that its instances may read their agents'
join token and nothing else.

    check_terraform.py FOLDER TROOP        # FOLDER: docs/examples/aws; TROOP: the binary

Needs PyPI python-hcl2.
"""

import json
import pathlib
import re
import subprocess
import sys

import hcl2

REFERENCE = re.compile(r"\b(?:(data)\.)?((?:aws_[a-z0-9_]+)|var|local)\.([a-z0-9_]+)")
# What may be declared without a reference to it: it is what the file is for.
ENDS = {
    "aws_iam_role_policy",
    "aws_iam_instance_profile",
    "aws_vpc_security_group_ingress_rule",
    "aws_vpc_security_group_egress_rule",
    "aws_lb_listener",
    "aws_autoscaling_group",
}


def plain(text):
    """A name or string as it is meant: some releases of the parser keep the quotes."""
    return text.strip('"') if isinstance(text, str) else text


def expressions(value):
    """Every text below a value; in those that hold an expression the parser leaves `${…}`."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)
    elif isinstance(value, str) and "${" in value:
        yield value


def one(value):
    """A block's body: a list of one where the parser has lists."""
    return value[0] if isinstance(value, list) else value


def declared(tree):
    """(kind, name) -> body; kind is `var`, a resource's type, or `data` and one."""
    found = {}
    for block in tree.get("variable", []):
        for name, body in block.items():
            found["var", plain(name)] = body
    for word, prefix in (("resource", ""), ("data", "data ")):
        for block in tree.get(word, []):
            for kind, named in block.items():
                for name, body in one(named).items():
                    key = prefix + plain(kind), plain(name)
                    assert key not in found, f"{key} is declared twice"
                    found[key] = one(body)
    return found


def check_references(tree, things):
    used = set()
    for text in expressions(tree):
        for data, kind, name in REFERENCE.findall(text):
            key = (f"data {kind}" if data else kind), name
            assert key in things, f"{key} is referred to and not declared, in {text}"
            used.add(key)
    idle = {key for key in things if key not in used and key[0] not in ENDS}
    assert not idle, f"declared in vain: {sorted(idle)}"
    assert len(used) >= 10, f"only {len(used)} references were found"


def actions(document):
    return sorted(action for statement in document["Statement"] for action in statement["Action"])


def check_policy(folder, things, troop):
    policy = plain(things["aws_iam_role_policy", "troop_read"]["policy"])
    named = re.search(r"\$\{path\.module\}/([a-z-]+\.json)", policy)
    assert named, f"the role's policy is no file beside it: {policy}"
    kept = json.loads((folder / named[1]).read_text())
    made = json.loads(subprocess.run([troop, "aws", "policy"], check=True, capture_output=True, text=True).stdout)
    assert actions(kept) == actions(made), set(actions(kept)) ^ set(actions(made))
    assert kept == made, "the policy is another than `troop aws policy` prints"
    changing = [action for action in actions(kept) if not re.search(r":(Describe|Get|List)", action)]
    assert not changing, f"who is leashed changes nothing: {changing}"


def check_group(things):
    group = things["aws_autoscaling_group", "checkout"]
    tags = {plain(tag["key"]): plain(tag["value"]) for tag in group["tag"]}
    assert tags == {"troop:team": "${var.team}"}, tags
    assert re.fullmatch(r"[a-z]+-[a-z]+-v\d{3}", plain(group["name"])), group["name"]
    assert int(group["min_size"]) >= 3
    options = one(things["aws_launch_template", "checkout"]["metadata_options"])
    assert plain(options["http_tokens"]) == "required", "version 1 of the metadata service is open"
    assert "user_data" not in things["aws_launch_template", "checkout"], "no secret has a place there"


def check_agents(things):
    token = things["aws_ssm_parameter", "join"]
    assert plain(token["type"]) == "SecureString", "the token lies in the open"
    ignored = one(token["lifecycle"])["ignore_changes"]
    assert "value" in [plain(name).strip("${}") for name in ignored], "applying it again would take the token away"
    statement = one(things["data aws_iam_policy_document", "agent"]["statement"])
    assert [plain(action) for action in statement["actions"]] == ["ssm:GetParameter"], statement
    assert [plain(on) for on in statement["resources"]] == ["${aws_ssm_parameter.join.arn}"], statement
    profile = one(things["aws_launch_template", "checkout"]["iam_instance_profile"])
    assert plain(profile["arn"]) == "${aws_iam_instance_profile.checkout.arn}", profile


def main():
    folder, troop = pathlib.Path(sys.argv[1]), sys.argv[2]
    with open(folder / "main.tf", encoding="utf-8") as file:
        tree = hcl2.load(file)
    things = declared(tree)
    check_references(tree, things)
    check_policy(folder, things, troop)
    check_group(things)
    check_agents(things)
    print(f"{folder}/main.tf: {len(things)} declarations, good")


if __name__ == "__main__":
    main()
