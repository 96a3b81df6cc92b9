"""The cluster files: what they say, and that Ray and EC2 understand it: `python -m pytest tests/test_cluster_files.py`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.launch import facts, generate, stop

ROOT = facts.ROOT
RAY_UP = ("ray_cluster.yaml", "cluster/launch/on_premises.yaml", "cluster/launch/gcp.yaml")
KUBERNETES = "cluster/launch/kubernetes.yaml"
Config = dict[str, Any]


def read(path: str) -> Config:
    content = yaml.safe_load((ROOT / path).read_text())
    assert isinstance(content, dict)
    return content


def node_types(config: Config) -> dict[str, Config]:
    return config["available_node_types"]


@pytest.mark.parametrize("path", generate.files())
def test_a_cluster_file_is_what_the_code_writes(path: str) -> None:
    assert (ROOT / path).read_text() == generate.files()[path], "run `make docs`"


# ---- who reads them ----


def accepted_by_ray(config: Config) -> Config:
    """The configuration as `ray up` goes on with it; raises when Ray refuses it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: Config = prepare_config(config)
    for node_type in node_types(prepared).values():
        node_type.setdefault("resources", {})  # AWS says what a machine has
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("path", RAY_UP)
def test_ray_accepts_a_file_for_ray_up(path: str) -> None:
    prepared = accepted_by_ray(read(path))
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == read(path)["setup_commands"]
    assert prepared["head_start_ray_commands"] == read(path)["head_start_ray_commands"]


def test_ray_refuses_a_key_that_it_does_not_know() -> None:
    with pytest.raises(Exception, match="max_worker"):
        accepted_by_ray(read("ray_cluster.yaml") | {"max_worker": 3})


def refused_by_ec2(node_config: Config) -> str:
    """What EC2's own description of RunInstances has against a node_config; empty when nothing."""
    session = pytest.importorskip(
        "botocore.session", reason="botocore is not installed: pip install boto3"
    ).get_session()
    from botocore.validate import ParamValidator

    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    asked = {key: value for key, value in node_config.items() if key != "SubnetIds"}  # that one is Ray's own
    report = ParamValidator().validate(asked | {"MinCount": 1, "MaxCount": 1}, shape)
    known = node_config["InstanceType"] in shape.members["InstanceType"].enum
    return str(report.generate_report()) + ("" if known else f"unknown InstanceType {node_config['InstanceType']}")


@pytest.mark.parametrize("node_type", node_types(read("ray_cluster.yaml")))
def test_ec2_knows_every_key_of_a_node_config(node_type: str) -> None:
    assert refused_by_ec2(node_types(read("ray_cluster.yaml"))[node_type]["node_config"]) == ""


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"InstanceTyp": "m5.xlarge"}, "InstanceTyp"),
        ({"MetadataOptions": {"HttpToken": "required"}}, "HttpToken"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"Encrypt": True}}]}, "Encrypt"),
        ({"InstanceType": "m99.huge"}, "m99.huge"),
    ],
)
def test_what_ec2_does_not_know_is_noticed(change: Config, complaint: str) -> None:
    assert complaint in refused_by_ec2(node_types(read("ray_cluster.yaml"))["head"]["node_config"] | change)


# ---- nobody uninvited ----


@pytest.mark.parametrize("path", RAY_UP)
def test_ray_starts_with_the_token_and_its_dashboard_on_loopback(path: str) -> None:
    config = read(path)
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    for command in (head, worker):
        assert re.search(r"; RAY_AUTH_MODE=token (RAY_\w+=\S+ )?ray start --(head|address)", command)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("path", [*RAY_UP, KUBERNETES])
def test_no_file_has_a_secret_or_opens_a_port_to_the_world(path: str) -> None:
    text = (ROOT / path).read_text()
    assert "0.0.0.0" not in text
    assert not re.search(r"(?i)password|secret_access_key|AKIA[0-9A-Z]{16}|://[^/\s]*:[^/\s]*@", text)


@pytest.mark.parametrize("node_type", ["head", "worker"])
def test_a_machine_on_aws_has_its_own_group_and_profile_an_encrypted_disk_and_guarded_metadata(node_type: str) -> None:
    config = node_types(read("ray_cluster.yaml"))[node_type]["node_config"]
    assert config["SecurityGroupIds"]
    assert f"convsweep-{node_type}" in config["IamInstanceProfile"]["Arn"]
    assert config["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    assert [disk["Ebs"]["Encrypted"] for disk in config["BlockDeviceMappings"]] == [True]


@pytest.mark.parametrize("node_type", ["head", "worker"])
def test_a_machine_on_google_cloud_has_its_own_account_and_takes_no_key_of_the_project(node_type: str) -> None:
    config = node_types(read("cluster/launch/gcp.yaml"))[node_type]["node_config"]
    assert [account["email"].split("@")[0] for account in config["serviceAccounts"]] == [f"convsweep-{node_type}"]
    assert {"key": "block-project-ssh-keys", "value": "TRUE"} in config["metadata"]["items"]


# ---- who trains ----


@pytest.mark.parametrize("path", RAY_UP)
def test_the_head_runs_no_trials(path: str) -> None:
    config = read(path)
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    if "available_node_types" in config:
        assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("path", ["ray_cluster.yaml", "cluster/launch/gcp.yaml"])
def test_workers_are_spot_machines_from_none_to_a_limit(path: str) -> None:
    config = read(path)
    worker = node_types(config)["worker"]
    assert (worker["min_workers"], worker["max_workers"]) == (0, config["max_workers"])
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}, "provisioningModel": "SPOT"}
    found = worker["node_config"] | worker["node_config"].get("scheduling", {})
    assert any(found.get(key) == value for key, value in spot.items())


def test_own_hosts_have_the_first_version_of_the_autoscaler() -> None:
    """The second one starts all of them but one; said next to `ray start`, it wins over what `ray up` exports."""
    assert (
        "RAY_enable_autoscaler_v2=0 ray start" in read("cluster/launch/on_premises.yaml")["head_start_ray_commands"][-1]
    )


# ---- who edits them ----


@pytest.mark.parametrize("path", RAY_UP)
def test_what_is_to_be_edited_is_at_the_top_says_so_and_is_used(path: str) -> None:
    text = (ROOT / path).read_text()
    top, rest = re.split(r"(?m)^(?=max_workers:|provider:)", text, maxsplit=1)
    settings = [line for line in top.splitlines() if re.match(r"  \w+:", line)]
    assert settings
    assert [line for line in settings if "# EDIT: " not in line] == []
    assert "EDIT" not in rest
    for name in re.findall(r"&(\w+)", top):
        assert re.search(rf"\*{name}\b", rest), f"{name} is set and not used"
    assert not re.search(r"example|123456|my-project|192\.0\.2|0123456789", rest)


# ---- what lies on a node ----


@pytest.mark.parametrize("path", RAY_UP)
def test_a_node_gets_what_pip_needs_of_the_checkout(path: str) -> None:
    mounts = read(path)["file_mounts"]
    here = {local.removeprefix("./") for local in mounts.values() if local.startswith("./")}
    assert [name for name in here if not (ROOT / name).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    files = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "constraints.txt"}
    assert here == packages | files
    extras = read(path)["setup_commands"][0].split()[-1].split(",")
    assert set(extras) <= set(project["project"]["optional-dependencies"])


@pytest.mark.parametrize("script", ["node.sh", "install.sh"])
def test_a_script_of_a_node_can_be_read_by_bash(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / "cluster/launch" / script], check=True)


def test_a_node_exports_each_line_of_its_environment_as_it_stands(tmp_path: Path) -> None:
    lines = [
        "# a comment",
        "",
        "CONVSWEEP_STUDY_STORAGE=postgresql://u:p$w'd@host/db?a=1&b=2",
        "OTHER=a b",
        "LAST=$(false)",
    ]
    (tmp_path / ".convsweep").mkdir()
    (tmp_path / ".convsweep/cluster.env").write_text("\n".join(lines))  # and no newline at the end
    shows = '. "$1"; . "$1"; "$2" -c "import json, os; print(json.dumps(dict(os.environ)))"'
    words = ["bash", "-euc", shows, "bash", str(ROOT / "cluster/launch/node.sh"), sys.executable]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout)
    expected = dict(line.split("=", 1) for line in lines if "=" in line)
    assert {name: found[name] for name in expected} == expected
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["PATH"] == f"{tmp_path}/convsweep/.venv/bin:{environment['PATH']}"


def test_a_worker_is_stopped_as_the_user_and_by_the_key_of_its_cluster() -> None:
    config = {"auth": {"ssh_user": "ann", "ssh_private_key": "/keys/k"}, "provider": {"worker_ips": ["h1"]}}
    words = stop.command(config, "h1")
    assert words[:3] == ["ssh", "-i", "/keys/k"]
    assert words[-2] == "ann@h1"
    assert words[-1].endswith("ray stop")


# ---- Kubernetes ----


def manifests() -> dict[str, Config]:
    return {found["kind"]: found for found in yaml.safe_load_all((ROOT / KUBERNETES).read_text())}


def test_on_kubernetes_the_token_comes_from_a_secret_and_the_ports_are_for_the_namespace() -> None:
    found = manifests()
    assert found["RayCluster"]["spec"]["authOptions"] == {"mode": "token", "secretName": "convsweep-token"}
    assert found["RayCluster"]["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    policy = found["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"ray.io/cluster": found["RayCluster"]["metadata"]["name"]}
    assert policy["policyTypes"] == ["Ingress"]


def test_on_kubernetes_the_head_runs_no_trials_and_all_pods_run_one_image_as_nobody_in_particular() -> None:
    spec = manifests()["RayCluster"]["spec"]
    assert spec["rayVersion"] == facts.ray_version()
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "convsweep-environment"}}]
    assert [(g["minReplicas"], g["maxReplicas"]) for g in spec["workerGroupSpecs"]] == [(0, 8)]


def test_on_kubernetes_the_sweep_is_a_command_on_that_cluster() -> None:
    job = manifests()["RayJob"]["spec"]
    assert job["clusterSelector"] == {"ray.io/cluster": manifests()["RayCluster"]["metadata"]["name"]}
    assert job["entrypoint"].startswith("convsweep sweep ")
    assert "--address auto" in job["entrypoint"]


def test_the_image_has_what_pip_needs_of_the_checkout() -> None:
    copied = " ".join(re.findall(r"(?m)^COPY --chown=\S+ (.*) \S+$", (ROOT / "cluster/launch/Dockerfile").read_text()))
    assert set(copied.split()) == {*facts.FOLDERS, *facts.FILES}
