"""Confirm a sweep's best: each configuration again, with several seeds, on all but the test split, which scores it once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from cluster.confirmed import MOST_SEEDS, FinalScore, best_configurations, key_of
from cluster.connection import connect
from cluster.experiments import Experiments
from cluster.finals import Final, Trained, train_finals
from cluster.interrupts import Stop, interruptible
from cluster.lease import Lease
from cluster.progress import say_skipped
from cluster.record import SweepRecord, TrialRecord
from cluster.studies import Studies
from cluster.study import SweepStudy
from trainer.data import ImageData, OnProgress, load_data
from trainer.evaluation import class_scores
from trainer.hyperparameters import unflatten


@dataclass(frozen=True)
class Confirmation:
    """The sweep with all that was confirmed of it so far; which final trainings failed, why, by their titles.

    `is_over` says that all which was asked for was trained and scored, or has failed.
    """

    sweep: SweepRecord
    failures: dict[str, str] = field(default_factory=dict)
    is_over: bool = True


@dataclass(frozen=True)
class _Wanted:
    """One configuration with one seed, the `final` training that it takes, and whether its model `is_scored`."""

    trial: TrialRecord
    seed: int
    final: Final
    is_scored: bool


def confirm(
    name: str,
    top: int,
    seeds: int,
    experiments: Experiments,
    address: str | None,
    on_progress: OnProgress,
    *,
    data_root: str | None = None,
    cache: str | None = None,
    takeover: bool = False,
) -> Confirmation:
    """Train the `top` best configurations with the seeds 0, 1, ..., as far as they are not, and score what is not scored yet.

    `data_root` and `cache` stand in for those that the sweep had. Raises ValueError for what makes no sense, for data without a test
    split and for a sweep without a complete trial, LeaseHeldError while another process runs the sweep.
    """
    if top < 1:
        raise ValueError(f"--top must be at least 1, but got {top}.")
    if not 1 <= seeds <= MOST_SEEDS:
        raise ValueError(f"--seeds must be 1 to {MOST_SEEDS}, but got {seeds}.")
    study, stop = Studies(experiments).open(name), Stop()
    with study.lease(takeover, on_lost=stop.because) as lease, interruptible(stop.event):
        _close_lost_run(study, lease)
        sweep = study.read()
        sweep.best_or_error()
        experiments = experiments.of(sweep.storage_path)
        wanted = [_want(sweep, trial, seed) for trial in best_configurations(sweep, top) for seed in range(seeds)]
        store = experiments.confirmed(name)
        is_there = all(store.configuration(w.final.key) == w.final.config for w in wanted)
        if is_there and all(w.is_scored for w in wanted):
            return Confirmation(sweep)
        own = sweep.config.data
        config = replace(sweep.config, data=replace(own, root=data_root or own.root, cache=cache or own.cache))
        data = load_data(config.data, on_progress)
        say_skipped(data.skipped)
        if data.test is None:
            raise ValueError(
                f"Configurations are compared on a test split, but {config.data.name!r}, the data of sweep {name!r}, has none. Give it "
                "one: images that no trial has seen, in a folder test/ beside train/."
            )
        trained = train_finals(
            [w.final for w in wanted], config, store, experiments, partial(connect, address), stop.event.is_set
        )
        unscored = [w for w in wanted if not w.is_scored and w.final.key in trained.done]
        failures = dict(trained.failures)
        if unscored and not stop.event.is_set():
            failures |= _score(unscored, trained, data, study, stop, on_progress)
        if not lease.is_mine:
            raise RuntimeError(f"{stop.reason} What was trained is kept; what was scored before is recorded.")
        sweep = study.read()
        over = {score.key for score in sweep.confirmed} | failures.keys()
        causes = {w.final.title: failures[w.final.key] for w in wanted if w.final.key in failures}
        return Confirmation(sweep, causes, is_over=all(w.final.key in over for w in wanted))


def _close_lost_run(study: SweepStudy, lease: Lease) -> None:
    """Where the process that ran the sweep was killed, its lease says so; that is ours now, so the record has to."""
    if lease.before is not None and study.state == "RUNNING":
        study.close_lost_run(ended=lease.before.beat)
        study.end_run("INTERRUPTED")


def _want(sweep: SweepRecord, trial: TrialRecord, seed: int) -> _Wanted:
    config = unflatten(trial.config | {"training.seed": seed})
    final = Final(key_of(trial.number, seed), f"trial {trial.number}, seed {seed}", config)
    return _Wanted(trial, seed, final, any(score.key == final.key for score in sweep.confirmed))


def _score(
    wanted: Sequence[_Wanted],
    trained: Trained,
    data: ImageData,
    study: SweepStudy,
    stop: Stop,
    on_progress: OnProgress,
) -> dict[int, str]:
    """Score the models on the test split, each recorded at once, so that none ever is again; gives what is wrong with others, by key."""
    from cluster.export import rebuild, score_splits

    failures: dict[int, str] = {}
    on_progress("scoring on the test split", 0, len(wanted))
    for done, w in enumerate(wanted, 1):
        scores = score_splits(rebuild(trained.checkpoint(w.final.key), data), data, final=True)["test"]
        if math.isfinite(scores.loss):
            recall = class_scores(np.asarray(scores.confusion)).recall
            score = FinalScore(
                trial=w.trial.number,
                seed=w.seed,
                accuracy=scores.accuracy,
                balanced_accuracy=float(recall[np.sum(scores.confusion, axis=1) > 0].mean()),
                macro_f1=scores.macro_f1,
                loss=scores.loss,
                images=scores.images,
                scored_at=time.time(),
            )
            study.save_confirmed([*study.read().confirmed, score])
        else:
            failures[w.final.key] = "Its last step left it with a loss that is not finite."
        on_progress("scoring on the test split", done, len(wanted))
        if stop.event.is_set():
            break
    return failures
