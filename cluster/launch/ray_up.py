"""The files for `ray up`: one for each provider."""

from __future__ import annotations

import textwrap

from cluster.launch import facts

AUTOSCALER_V1 = "RAY_enable_autoscaler_v2=0 "
"""For the provider `local`, the second version of Ray's autoscaler starts all workers but one, and stays there (Ray 2.50 to 2.60)."""


def aws() -> str:
    """For the provider `aws`."""
    head = facts.heading(
        "A Ray cluster on AWS: a head that trains nothing, spot GPU workers that come and go with the trials."
    )
    return f"""{head}cluster_name: convsweep

metadata: # Ray reads none of this by itself: the lines below refer to it
  region: &region us-west-2 # EDIT: where the machines are
  image: &image ami-0123456789abcdef0 # EDIT: Ubuntu 24.04 with NVIDIA's driver, of that region
  subnets: &subnets [subnet-0123456789abcdef0] # EDIT: one or more; with public addresses, unless `internal` is true
  firewall: &firewall [sg-0123456789abcdef0] # EDIT: a group that lets in port 22 from you, everything from itself, and nothing else
  head_profile: &head_profile {{Arn: "arn:aws:iam::123456789012:instance-profile/convsweep-head"}} # EDIT: may start workers
  worker_profile: &worker_profile {{Arn: "arn:aws:iam::123456789012:instance-profile/convsweep-worker"}} # EDIT: the bucket alone
  user: &user ubuntu # EDIT: who logs in there, by the image
  key_name: &key_name convsweep # EDIT: the key pair's name in EC2
  private_key: &private_key ~/.ssh/convsweep.pem # EDIT: its file here; Ray copies it to the head, so use it for nothing else
  head_type: &head_type m5.xlarge # EDIT: 16 GB of memory or more
  worker_type: &worker_type g5.xlarge # EDIT: the machine that trains
  most_workers: &most_workers 8 # EDIT: no more of them than this, which bounds what the cluster can cost
  idle_minutes: &idle_minutes 5 # EDIT: a worker without work goes after this time
  internal: &internal false # EDIT: true when you reach the subnets by VPN, so that no machine needs a public address

max_workers: *most_workers
idle_timeout_minutes: *idle_minutes
upscaling_speed: 1.0

provider:
  type: aws
  region: *region
  use_internal_ips: *internal
  cache_stopped_nodes: false # stopped machines would still cost their disks

auth:
  ssh_user: *user
  ssh_private_key: *private_key

available_node_types:
  head:
    resources: {{CPU: 0}} # no trials here: what the sweep hangs on is not to compete with them
    node_config: &machine
      InstanceType: *head_type
      ImageId: *image
      KeyName: *key_name
      SubnetIds: *subnets
      # Without these two, Ray makes a group that is open to the world on port 22, and a role that may do anything in EC2 and S3.
      SecurityGroupIds: *firewall
      IamInstanceProfile: *head_profile
      MetadataOptions: {{HttpTokens: required, HttpPutResponseHopLimit: 1}}
      BlockDeviceMappings:
        - {{DeviceName: /dev/sda1, Ebs: {{VolumeSize: 150, VolumeType: gp3, Encrypted: true, DeleteOnTermination: true}}}}
  worker:
    min_workers: 0
    max_workers: *most_workers
    node_config:
      <<: *machine
      InstanceType: *worker_type
      IamInstanceProfile: *worker_profile
      InstanceMarketOptions: {{MarketType: spot}}
head_node_type: head

{_common("aws,postgresql")}"""


def on_premises() -> str:
    """For the provider `local`: hosts that are there already."""
    head = facts.heading("A Ray cluster of hosts that are there already, all reached by ssh with one user and one key.")
    return f"""{head}cluster_name: convsweep

metadata: # Ray reads none of this by itself: the lines below refer to it
  head: &head 192.0.2.10 # EDIT: the host that runs the sweep and trains nothing; all hosts must reach each other by these names
  workers: &workers [192.0.2.11, 192.0.2.12] # EDIT: the hosts that train
  user: &user ubuntu # EDIT: who logs in there
  private_key: &private_key ~/.ssh/convsweep # EDIT: the key; Ray copies it to the head, so use it for nothing else

provider:
  type: local
  head_ip: *head
  worker_ips: *workers

auth:
  ssh_user: *user
  ssh_private_key: *private_key

{_common("postgresql", AUTOSCALER_V1)}"""


def gcp() -> str:
    """For the provider `gcp`."""
    head = facts.heading(
        "A Ray cluster on Google Cloud: a head that trains nothing, spot GPU workers that come and go with the trials."
    )
    return f"""{head}cluster_name: convsweep

metadata: # Ray reads none of this by itself: the lines below refer to it
  project: &project my-project # EDIT: the project's id
  region: &region us-central1 # EDIT: where the machines are
  zone: &zone us-central1-a # EDIT: a zone of it that has the workers' GPUs
  image: &image projects/my-project/global/images/family/convsweep # EDIT: Ubuntu 24.04 with NVIDIA's driver
  network: # EDIT: your subnetwork; accessConfigs give a public address, leave them out when you reach it by VPN
    - &network
      subnetwork: projects/my-project/regions/us-central1/subnetworks/convsweep
      accessConfigs: [{{name: External NAT, type: ONE_TO_ONE_NAT}}]
  head_account: &head_account # EDIT: a service account that may start workers and use the bucket
    email: convsweep-head@my-project.iam.gserviceaccount.com
    scopes: [https://www.googleapis.com/auth/cloud-platform]
  worker_account: &worker_account # EDIT: one that may use the bucket alone
    email: convsweep-worker@my-project.iam.gserviceaccount.com
    scopes: [https://www.googleapis.com/auth/cloud-platform]
  private_key: &private_key ~/.ssh/convsweep # EDIT: the key; Ray copies it to the head, so use it for nothing else
  user: &user ubuntu # EDIT: who logs in there
  public_key: &public_key "ubuntu:ssh-ed25519 AAAA... ubuntu" # EDIT: the same user, that key's public half, the user again
  head_type: &head_type n2-standard-4 # EDIT: 16 GB of memory or more
  worker_type: &worker_type g2-standard-8 # EDIT: the machine that trains, here with one L4
  worker_resources: &worker_resources {{CPU: 8, GPU: 1}} # EDIT: what that machine has; Ray does not look it up
  most_workers: &most_workers 8 # EDIT: no more of them than this, which bounds what the cluster can cost
  idle_minutes: &idle_minutes 5 # EDIT: a worker without work goes after this time

max_workers: *most_workers
idle_timeout_minutes: *idle_minutes
upscaling_speed: 1.0

provider: # Ray also makes a service account of its own, ray-autoscaler-sa-v1, which these machines do not use
  type: gcp
  project_id: *project
  region: *region
  availability_zone: *zone

auth:
  ssh_user: *user
  ssh_private_key: *private_key

available_node_types:
  head:
    resources: {{CPU: 0}} # no trials here: what the sweep hangs on is not to compete with them
    node_config: &machine
      machineType: *head_type
      disks:
        - boot: true
          autoDelete: true
          type: PERSISTENT
          initializeParams: {{diskSizeGb: 150, sourceImage: *image}}
      networkInterfaces: [*network]
      tags: {{items: [convsweep]}} # what your firewall rules refer to
      serviceAccounts: [*head_account]
      shieldedInstanceConfig: {{enableVtpm: true, enableIntegrityMonitoring: true}}
      metadata:
        items:
          - {{key: block-project-ssh-keys, value: "TRUE"}}
          - {{key: ssh-keys, value: *public_key}}
  worker:
    min_workers: 0
    max_workers: *most_workers
    resources: *worker_resources
    node_config:
      <<: *machine
      machineType: *worker_type
      serviceAccounts: [*worker_account]
      scheduling: {{provisioningModel: SPOT, instanceTerminationAction: DELETE, onHostMaintenance: TERMINATE}}
head_node_type: head

{_common("gcp,postgresql")}"""


def _common(extras: str, head_extra: str = "") -> str:
    """What all files for `ray up` end with."""
    mounts = "".join(f'  "{remote}": "{local}"\n' for remote, local in facts.mounts().items())
    return (
        "# The token that lets clients in, the environment with all that is secret, and what pip needs of the checkout:\n"
        "# run `ray up` in the checkout.\n"
        f"file_mounts:\n{mounts}"
        'rsync_exclude: ["__pycache__"]\n'
        "\n"
        f"setup_commands:\n  - {facts.setup(extras)}\n"
        "head_setup_commands: [] # else Ray adds its own, which install another version of a cloud's client\n"
        "head_start_ray_commands:\n"
        "  - ray stop\n"
        f"{_folded(facts.head_start(head_extra))}"
        "worker_start_ray_commands:\n"
        "  - ray stop\n"
        f"{_folded(facts.worker_start())}"
    )


def _folded(command: str) -> str:
    """A command as an item of a list in YAML, in lines that can be read."""
    lines = textwrap.wrap(command, 116, break_on_hyphens=False, break_long_words=False)
    return f"  - {command}\n" if len(lines) == 1 else "  - >-\n" + "".join(f"    {line}\n" for line in lines)
