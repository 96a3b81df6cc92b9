"""An account of AWS as somebody has it who follows docs/cluster.md, made on the lab's laptop; prints what to write into the file.

python aws_world.py NETWORK REGION BUCKET: the machines get the addresses .4, .5 ... of that network, in the order in which they start.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import boto3

TRUST = json.dumps(
    {"Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}
)


def main() -> None:
    network, region, bucket = sys.argv[1:]
    block = f"{network}.0/24"
    ec2, iam, s3 = (boto3.client(service) for service in ("ec2", "iam", "s3"))
    vpc = ec2.create_vpc(CidrBlock=block)["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=f"{region}a")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(GroupName="convsweep", Description="convsweep", VpcId=vpc)["GroupId"]
    from_me = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": f"{network}.250/32"}]}
    from_itself = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[from_me, from_itself])
    public_key = (Path.home() / ".ssh/authorized_keys").read_bytes()
    ec2.import_key_pair(KeyName="convsweep", PublicKeyMaterial=public_key)
    profiles = {}
    for who in ("head", "worker"):
        name = f"convsweep-{who}"
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=TRUST)
        profiles[who] = iam.create_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Arn"]
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": region})
    settings = {
        "region": region,
        "image": ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"],
        "subnets": f"[{subnet}]",
        "firewall": f"[{group}]",
        "head_profile": json.dumps({"Arn": profiles["head"]}),
        "worker_profile": json.dumps({"Arn": profiles["worker"]}),
        "key_name": "convsweep",
    }
    print(json.dumps(settings))


if __name__ == "__main__":
    main()
