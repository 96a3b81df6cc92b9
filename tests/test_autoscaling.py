"""What is known of a cluster that may grow, and what is said while groups wait for it."""

from __future__ import annotations

import pytest

from cluster.autoscaling import VARIABLE, nodes_of, possible_nodes
from cluster.plan import Nodes, Plan
from cluster.watch import PATIENCE, SAID_AGAIN_AFTER, _Missing

FILE = {
    "max_workers": 5,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "large": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 4},
        "small": {"resources": {"CPU": 2}, "max_workers": 4},
    },
}
PLAN = Plan(groups=3, workers=2, cpus_per_worker=1.0, gpus_per_worker=1.0, at_once=1, most=3)


def test_a_cluster_may_have_as_many_workers_as_its_file_says_of_each_type_and_of_all() -> None:
    large, small = Nodes({"CPU": 8.0, "GPU": 1.0}, 4), Nodes({"CPU": 2.0}, 1)
    assert nodes_of(FILE) == [large, small, Nodes({"CPU": 0.0}, 1)]


def test_the_heads_type_may_be_the_workers_too() -> None:
    types = {"node": {"resources": {"CPU": 8}, "max_workers": 4}}
    assert nodes_of({"max_workers": 4, "head_node_type": "node", "available_node_types": types}) == [
        Nodes({"CPU": 8.0}, 5)
    ]


def test_where_no_file_is_at_hand_the_environment_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "[{resources: {CPU: 4, GPU: 1}, count: 8}]")
    assert possible_nodes() == [Nodes({"CPU": 4, "GPU": 1}, 8)]


@pytest.mark.parametrize(
    "text", ["[", "8", "[{count: 8}]", "[{resources: {CPU: 4}, count: many}]", "[{resources: 4, count: 1}]"]
)
def test_an_environment_that_says_no_such_thing_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ValueError, match="CONVSWEEP_NODES must be a list such as"):
        possible_nodes()


def nothing() -> str:
    return ""


def test_that_groups_are_missing_is_said_after_a_while_once_and_again_later() -> None:
    missing = _Missing(PLAN)
    assert missing.line(0.0, 1, 3, 1, nothing) is None
    said = missing.line(PATIENCE, 1, 3, 1, nothing)
    assert said == "1 of 3 worker group(s) are up; 2 wait for nodes with room for 4 more rank(s) with 1 GPU each"
    assert missing.line(PATIENCE + 2, 1, 3, 1, nothing) is None
    assert missing.line(PATIENCE + SAID_AGAIN_AFTER, 1, 3, 1, nothing) == said


def test_what_the_autoscaler_is_at_is_said_with_it_when_it_changes() -> None:
    missing = _Missing(PLAN)
    missing.line(0.0, 0, 3, 2, nothing)
    said = missing.line(PATIENCE, 0, 3, 2, lambda: "the autoscaler is starting 1 node(s)")
    assert said == (
        "0 of 3 worker group(s) are up; 1 wait for nodes with room for 2 more rank(s) with 1 GPU each; "
        "2 are starting, or wait for what others use; the autoscaler is starting 1 node(s)"
    )
    assert missing.line(PATIENCE + 2, 0, 3, 2, lambda: "2 x g5.xlarge could not be started: none left") is not None


def test_that_all_groups_are_up_is_said_only_after_some_were_missed() -> None:
    missing = _Missing(PLAN)
    assert missing.line(0.0, 3, 3, 3, nothing) is None
    assert missing.line(1.0, 2, 3, 3, nothing) is None
    assert missing.line(2.0, 3, 3, 3, nothing) is None
    missing.line(3.0, 2, 3, 3, nothing)
    assert missing.line(3.0 + PATIENCE, 2, 3, 3, nothing) is not None
    assert missing.line(4.0 + PATIENCE, 3, 3, 3, nothing) == "all 3 worker group(s) are up"
