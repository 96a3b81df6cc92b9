"""What there is in the account of AWS, on the lab's laptop: a line of JSON whenever it has changed, until it is killed."""

from __future__ import annotations

import json
import time
from typing import Any

import boto3


def main() -> None:
    ec2, iam, last = boto3.client("ec2"), boto3.client("iam"), None
    while True:
        now = state(ec2, iam)
        if now != last:
            print(json.dumps(now), flush=True)
        last = now
        time.sleep(0.5)


def state(ec2: Any, iam: Any) -> dict[str, Any]:
    instances = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    groups = ec2.describe_security_groups()["SecurityGroups"]
    attached = {
        role["RoleName"]: iam.list_attached_role_policies(RoleName=role["RoleName"])["AttachedPolicies"]
        for role in iam.list_roles()["Roles"]
    }
    return {
        "instances": [
            {
                "id": i["InstanceId"],
                "address": i.get("PrivateIpAddress"),
                "state": i["State"]["Name"],
                "type": i["InstanceType"],
                "lifecycle": i.get("InstanceLifecycle"),
                "groups": [group["GroupName"] for group in i.get("SecurityGroups", [])],
                "profile": i.get("IamInstanceProfile", {}).get("Arn", "").rpartition("/")[2],
                "tokens": i.get("MetadataOptions", {}).get("HttpTokens"),
            }
            for i in instances
        ],
        "groups": [group["GroupName"] for group in groups],
        "open": [
            group["GroupName"]
            for group in groups
            for rule in group["IpPermissions"]
            if any(r["CidrIp"] == "0.0.0.0/0" for r in rule["IpRanges"])
        ],
        "roles": {name: [policy["PolicyName"] for policy in policies] for name, policies in attached.items()},
    }


if __name__ == "__main__":
    main()
