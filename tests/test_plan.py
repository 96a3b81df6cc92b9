import pytest

from cluster.plan import GroupShape, Nodes, Plan, make_plan

LAPTOP = [Nodes({"CPU": 2.0})]
GPU_NODE = Nodes({"CPU": 16.0, "GPU": 4.0})
HEAD = Nodes({"CPU": 0.0})
SPOT = Nodes({"CPU": 4.0, "GPU": 1.0}, 8)


def test_two_cores_carry_two_groups_of_one_rank():
    assert make_plan(GroupShape(), LAPTOP, trials=20) == Plan(2, 1, 1.0, 0.0, at_once=2, most=20)


def test_no_more_groups_start_than_there_are_trials():
    assert make_plan(GroupShape(), [Nodes({"CPU": 8.0})], trials=3).groups == 3


def test_one_group_that_is_asked_for_gets_all_cores():
    assert make_plan(GroupShape(groups=1), LAPTOP, trials=20) == Plan(1, 1, 2.0, 0.0, at_once=1, most=1)


def test_a_large_machine_gives_a_rank_several_cores():
    plan = make_plan(GroupShape(), [Nodes({"CPU": 64.0})], trials=100)
    assert (plan.groups, plan.cpus_per_worker, plan.threads) == (8, 8.0, 8)


def test_where_there_are_gpus_a_rank_gets_one():
    plan = make_plan(GroupShape(), [GPU_NODE, GPU_NODE], trials=100)
    assert (plan.groups, plan.gpus_per_worker, plan.cpus_per_worker) == (8, 1.0, 4.0)


def test_a_quarter_of_a_gpu_carries_four_groups_on_each():
    assert make_plan(GroupShape(gpus_per_worker=0.25, cpus_per_worker=1), [GPU_NODE], trials=100).groups == 16


def test_a_group_may_span_nodes_but_a_rank_may_not():
    nodes = [Nodes({"CPU": 3.0}), Nodes({"CPU": 3.0})]
    assert make_plan(GroupShape(workers=2, cpus_per_worker=2), nodes, trials=9).groups == 1
    with pytest.raises(ValueError, match="2 fit"):
        make_plan(GroupShape(workers=3, cpus_per_worker=2), nodes, trials=9)


def test_a_head_without_cpus_carries_nothing():
    assert make_plan(GroupShape(), [HEAD, Nodes({"CPU": 2.0})], trials=9).groups == 2


@pytest.mark.parametrize(
    ("shape", "numbers"),
    [
        (GroupShape(workers=5, cpus_per_worker=1), "1 group(s) x 5 worker(s) = 5 worker(s) of 1 CPU each"),
        (GroupShape(groups=3, cpus_per_worker=1), "3 group(s) x 1 worker(s) = 3 worker(s)"),
        (GroupShape(gpus_per_worker=1), "only 0 fit"),
        (GroupShape(cpus_per_worker=4), "1 worker(s) of 4 CPU each"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_arithmetic(shape, numbers):
    with pytest.raises(ValueError, match="fit on the cluster's 1 node") as error:
        make_plan(shape, LAPTOP, trials=9)
    assert numbers in str(error.value)
    assert "2 CPU and 0 GPU" in str(error.value)


def test_a_cluster_that_may_grow_gets_groups_that_wait_for_its_nodes():
    plan = make_plan(GroupShape(), [HEAD], trials=40, possible=[HEAD, SPOT])
    assert plan == Plan(8, 1, 4.0, 1.0, at_once=0, most=40)
    assert str(plan) == "8 worker group(s) of 1 rank(s) with 1 GPU each, 0 at first and the others as the cluster grows"


def test_what_cannot_fit_however_far_the_cluster_grows_is_refused_with_the_arithmetic():
    with pytest.raises(
        ValueError, match=r"only 0 fit .* nor more than 8 on 8 x 4 CPU and 1 GPU, which its autoscaler may"
    ):
        make_plan(GroupShape(groups=9), [HEAD], trials=40, possible=[HEAD, SPOT])


def test_nodes_that_join_a_cluster_get_as_many_groups_as_there_is_room_for():
    plan = make_plan(GroupShape(workers=2), [Nodes({"CPU": 2.0})], trials=40)
    assert plan.groups_that_fit([Nodes({"CPU": 2.0}, 3), Nodes({"CPU": 1.0})]) == 3
