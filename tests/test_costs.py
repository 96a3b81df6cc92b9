"""What a network costs, and a trial that costs too much on the ranks of a worker group. `python -m pytest tests/test_costs.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from trainer import latency, worker
from trainer.checkpoint import CheckpointStore
from trainer.costs import Costing, Limit, check, measure
from trainer.data import DataConfig, ImageData
from trainer.failures import OVER_LIMIT, OverLimitError, kind_of
from trainer.hyperparameters import unflatten
from trainer.loop import create_model
from trainer.mailbox import Assignment, Report
from trainer.model import Classifier, parameter_count

SMALL = unflatten({"model.blocks": 1, "model.filters": [4], "training.epochs": 2, "training.batch_size": 256})
CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


@pytest.fixture
def model(digits: ImageData) -> Classifier:
    return create_model(SMALL, digits, CPU)


def test_parameters_and_size_are_those_of_the_weights_on_disk(model: Classifier) -> None:
    found = measure(model, SHAPE, CPU, Costing(("parameters",)))
    assert found["parameters"] == parameter_count(model)
    stored = safetensors.torch.save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    header = 8 + int.from_bytes(stored[:8], "little")
    assert found["size_mb"] == pytest.approx((len(stored) - header) / 1e6)


def test_the_latency_is_that_of_the_stated_batch_and_measured_only_where_it_is_asked_for(
    model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    monkeypatch.setattr(latency, "WARM_UP", 0)
    monkeypatch.setattr(latency, "measure", lambda run, measured=latency.measure: measured(run, passes=1))
    model.register_forward_pre_hook(lambda _, images: batches.append(images[0]))
    assert "latency_ms" not in measure(model, SHAPE, CPU, Costing(("parameters", "size_mb")))
    assert not batches
    assert measure(model, SHAPE, CPU, Costing(("latency_ms",), latency_batch=3))["latency_ms"] > 0
    assert {(tuple(batch.shape), batch.dtype) for batch in batches} == {((3, *SHAPE), torch.uint8)}


def test_measuring_changes_nothing_in_the_network(model: Classifier) -> None:
    before = {name: tensor.clone() for name, tensor in model.train().state_dict().items()}
    state = torch.get_rng_state()
    measure(model, SHAPE, CPU, Costing(("latency_ms",)))
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_over_a_limit_is_said_with_all_that_is() -> None:
    limits = (Limit("parameters", 100.0), Limit("size_mb", 0.5), Limit("latency_ms", 5.0))
    measured = {"parameters": 101.0, "size_mb": 0.5, "latency_ms": 7.3}
    with pytest.raises(OverLimitError, match=r"^parameters 101 > 100, latency_ms 7\.3 > 5$") as error:
        check(measured, limits)
    assert kind_of(error.value) == OVER_LIMIT
    check(measured | {"parameters": 100.0, "latency_ms": 5.0}, limits)


# ---- on a worker group ----


class Remote:
    """A method of an actor that is called at once."""

    def __init__(self, answer: Any) -> None:
        self.remote = answer


class MailboxHere:
    """Stands in for the actor's handle of one first rank: what it reports is written down."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.finished: list[int] = []
        self.begin = Remote(lambda group, index: 0)
        self.report = Remote(lambda trial, report: self.reports.append(report))
        self.finish = Remote(lambda group, index: self.finished.append(index))


@pytest.fixture
def take(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a trial as the first rank of a group of one does, and give what it reported."""
    monkeypatch.setattr(worker.ray, "get", lambda answer: answer)
    data = DataConfig(data="digits", cache=str(cache))

    def run(costing: Costing, number: int = 0) -> list[Report]:
        mailbox = MailboxHere()
        assignment = Assignment(number, SMALL, data, str(tmp_path), begun=True, costing=costing)
        worker._Trial(mailbox, "group", 0, assignment, 0, 1).run(worker._Loaded(CPU), worker._News())
        assert mailbox.finished == [0]
        return mailbox.reports

    return run


def test_a_trial_over_a_limit_is_not_trained_and_says_why(
    take: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_training(*_: Any, **__: Any) -> None:
        pytest.fail("it was trained")

    monkeypatch.setattr(worker, "train", no_training)
    (report,) = take(Costing(("parameters",), (Limit("parameters", 10.0),)))
    assert (report.metrics, report.done, report.kind) == (None, True, OVER_LIMIT)
    assert report.error == f"parameters {report.parameters:,} > 10"
    assert report.costs["parameters"] == report.parameters
    assert CheckpointStore(str(tmp_path)).trials() == []


def test_a_trial_that_keeps_to_the_limits_is_trained_as_without_them(take: Any) -> None:
    plain = take(Costing(), number=1)
    bound = take(Costing(("parameters", "latency_ms"), (Limit("parameters", 1e6),)), number=2)
    losses = [[(r.metrics.train_loss, r.metrics.val_loss) for r in reports] for reports in (plain, bound)]
    assert losses[0] == losses[1]
    assert [r.costs for r in plain] == [{}, {}]
    assert all(r.costs == bound[0].costs and r.costs["latency_ms"] > 0 for r in bound)
    assert [r.done for r in bound] == [False, True]


def test_without_goals_nothing_is_measured(take: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "measure", lambda *_: pytest.fail("it was measured"))
    assert len(take(Costing())) == 2


def test_a_trial_that_goes_on_is_not_refused_for_a_latency_that_is_now_another(
    take: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    costing = Costing(("latency_ms",), (Limit("latency_ms", 5.0),))
    monkeypatch.setattr(worker, "measure", lambda *_: {"latency_ms": 4.9})
    first = take(costing)
    monkeypatch.setattr(worker, "measure", lambda *_: {"latency_ms": 5.1})
    again = take(costing)  # all epochs are told again to whoever was not there
    assert [r.metrics for r in again] == [r.metrics for r in first]
    assert [r.kind for r in again] == [None, None]


def test_the_other_ranks_get_what_the_first_one_measured(
    digits: ImageData, model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    def broadcast(values: list[Any], src: int) -> None:
        assert src == 0
        if sent:
            values[:] = sent[0]
        sent.append(list(values))

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    assignment = Assignment(0, SMALL, DataConfig(data="digits"), "nowhere", costing=Costing(("latency_ms",)))
    ranks = [worker._Trial(MailboxHere(), "group", 0, assignment, rank, 2) for rank in (0, 1)]
    first, second = (trial._measure(model, digits, CPU) for trial in ranks)
    assert first == second
    assert first["latency_ms"] > 0
