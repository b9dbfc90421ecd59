"""Makes a user with a policy at a server that stands in for AWS, and lets the server ask for permissions from then on.

    iam_user.py http://127.0.0.1:5000 policy.json

Prints the user's key id and secret on a line. Such a server enforces names of actions alone: conditions are dropped, and
resources become "*", because it never matches others.
"""

import json
import sys
import urllib.request

import boto3


def main(endpoint: str, path: str) -> None:
    with open(path, encoding="utf-8") as file:
        policy = json.load(file)
    for statement in policy["Statement"]:
        statement["Resource"] = "*"
        statement.pop("Condition", None)
    iam = boto3.client(
        "iam", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    iam.create_user(UserName="troop")
    iam.put_user_policy(UserName="troop", PolicyName="troop", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="troop")["AccessKey"]
    asked = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    urllib.request.urlopen(asked, timeout=10).close()
    print(key["AccessKeyId"], key["SecretAccessKey"])


main(*sys.argv[1:])
