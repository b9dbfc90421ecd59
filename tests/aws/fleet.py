#!/usr/bin/env python3
"""Makes a fleet at moto: groups spread over regions and subnets, the first of them in play, with a target group and a rule each.

    tests/aws/fleet.py http://127.0.0.1:5000 --groups 100 --instances 1000

Needs boto3, which `moto[server]` brings. Prints what it made as JSON.
"""

import argparse
import json

import boto3

REGIONS = "us-east-1,us-east-2,us-west-1,us-west-2"


def region(name, url, numbers, size, in_play):
    """The groups with these numbers, in one region; `size` tells of each how many instances it has."""
    keys = {"aws_access_key_id": "AKIAFLEET", "aws_secret_access_key": "fleet"}
    ec2, scaling, balancing = (
        boto3.client(service, region_name=name, endpoint_url=url, **keys) for service in ("ec2", "autoscaling", "elbv2")
    )
    # Moto puts all members of a group into its first subnet, and a subnet holds some 4,000.
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]]
    image = ec2.register_image(Name="web-1.0.0")["ImageId"]
    ec2.create_tags(Resources=[image], Tags=[{"Key": "appversion", "Value": "web-1.0.0"}])
    template = ec2.create_launch_template(
        LaunchTemplateName="web", LaunchTemplateData={"ImageId": image, "InstanceType": "t3.micro"}
    )["LaunchTemplate"]["LaunchTemplateId"]
    listener = None
    for number in numbers:
        group = f"app{number:05}-web-v001"
        settings = {"Tags": [{"Key": "app", "Value": f"app{number:05}", "PropagateAtLaunch": True}]}
        if number < in_play:
            vpc = ec2.describe_subnets()["Subnets"][0]["VpcId"]
            target_group = balancing.create_target_group(
                Name=f"web-{number}", Protocol="HTTP", Port=8080, VpcId=vpc
            )["TargetGroups"][0]["TargetGroupArn"]
            if listener is None:
                balancer = balancing.create_load_balancer(Name="front", Subnets=subnets[:2])["LoadBalancers"][0]
                nobody = {"Type": "fixed-response", "FixedResponseConfig": {"StatusCode": "503"}}
                listener = balancing.create_listener(
                    LoadBalancerArn=balancer["LoadBalancerArn"], Protocol="HTTP", Port=80, DefaultActions=[nobody]
                )["Listeners"][0]["ListenerArn"]
            balancing.create_rule(
                ListenerArn=listener,
                Priority=number + 1,
                Conditions=[{"Field": "path-pattern", "Values": [f"/{group}/*"]}],
                Actions=[{"Type": "forward", "TargetGroupArn": target_group}],
            )
            settings["TargetGroupARNs"] = [target_group]
            settings["Tags"].append({"Key": "troop:team", "Value": "bench", "PropagateAtLaunch": False})
        scaling.create_auto_scaling_group(
            AutoScalingGroupName=group,
            LaunchTemplate={"LaunchTemplateId": template, "Version": "1"},
            MinSize=size(number),
            MaxSize=size(number),
            DesiredCapacity=size(number),
            VPCZoneIdentifier=subnets[number % len(subnets)],
            **settings,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--in-play", type=int, default=8)
    parser.add_argument("--regions", default=REGIONS)
    args = parser.parse_args()
    regions = args.regions.split(",")
    each, more = divmod(args.instances, args.groups)
    for number, name in enumerate(regions):
        groups = range(number, args.groups, len(regions))
        region(name, args.url, groups, lambda group: each + (group < more), args.in_play)
    print(json.dumps({"regions": regions, "groups": args.groups, "instances": args.instances}))


if __name__ == "__main__":
    main()
