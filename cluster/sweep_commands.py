"""The commands that run trials: `sweep`, `resume` and `extend`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster import activity, tables
from cluster.config import KEYS, make_config, parse_duration, read_sweep_file
from cluster.experiments import Experiments
from cluster.extension import More
from cluster.options import (
    DATA_HELP,
    DEFAULT_FOLDER,
    Address,
    Cache,
    Constraints,
    CpusPerWorker,
    Data,
    DataRoot,
    Epochs,
    Folder,
    Goals,
    GpusPerWorker,
    ImageSize,
    Json,
    LatencyBatch,
    Metric,
    Preset,
    Seed,
    Set,
    SkipBroken,
    StoragePath,
    StudyStorage,
    Takeover,
    Workers,
    assignments,
    default_root,
    free_name,
)
from cluster.studies import Studies
from trainer.data import DataConfig

if TYPE_CHECKING:
    from cluster.sweep import Outcome


def sweep(
    file: Annotated[
        Path | None, typer.Argument(metavar="SWEEP.yaml", help="Settings, - from standard input; options win.")
    ] = None,
    data: Data = None,
    trials: Annotated[int | None, typer.Option(help="How many. [default: 20, or what fits the budget]")] = None,
    epochs: Epochs = None,
    time_budget: Annotated[str | None, typer.Option(help="No trial starts after this: 90s, 30m, 2h.")] = None,
    gpu_hours: Annotated[
        float | None, typer.Option(help="No trial starts once the groups have held GPUs for so long.")
    ] = None,
    price_per_node_hour: Annotated[
        float | None, typer.Option(help="What a node with ranks on it costs per hour.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="No trial starts once the nodes have cost so much, by their price.")
    ] = None,
    min_gain: Annotated[
        float | None, typer.Option(help="No trial starts once the next one is expected to gain less than this.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The sweep's name. [default: the data's, with a number]")] = None,
    preset: Preset = None,
    sampler: Annotated[str | None, typer.Option(help="tpe, random or grid. [default: tpe]")] = None,
    pruner: Annotated[str | None, typer.Option(help="halving, median or none. [default: halving]")] = None,
    metric: Metric = None,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Train each trial on that many folds and score it by their mean. [default: 1, a single split]"
        ),
    ] = None,
    goals: Goals = None,
    constraints: Constraints = None,
    latency_batch: LatencyBatch = None,
    set_: Set = None,
    seed: Seed = None,
    workers: Workers = None,
    cpus_per_worker: CpusPerWorker = None,
    gpus_per_worker: GpusPerWorker = None,
    groups: Annotated[int | None, typer.Option(help="Worker groups side by side. [default: all that fit]")] = None,
    keep_checkpoints: Annotated[
        int | None, typer.Option(help="Keep the weights of that many best trials. [default: 5]")
    ] = None,
    max_retries: Annotated[
        int | None, typer.Option(help="How often a trial is begun again whose processes died. [default: 2]")
    ] = None,
    epoch_timeout: Annotated[
        str | None, typer.Option(help="A trial fails when an epoch takes longer: 90s, 10m. [default: no limit]")
    ] = None,
    warm_start_from: Annotated[
        str | None, typer.Option(metavar="NAME", help="Learn from another sweep's trials, and try its best one early.")
    ] = None,
    validation_fraction: Annotated[
        float | None, typer.Option(help="Share held out to score trials. [default: 0.1]")
    ] = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Write event files: tensorboard --logdir experiments/NAME.")
    ] = None,
    address: Address = None,
    experiments: Folder = DEFAULT_FOLDER,
    study_storage: StudyStorage = None,
    storage_path: StoragePath = None,
    as_json: Json = False,
) -> None:
    """Search for the best network: try many, stop the hopeless early, rank them.

    The first trial is the data set's preset (--preset none: no such trial), so that the ranking shows what the search gained.
    Narrow the space with --set or with `space:` in a YAML file: a list chooses among, {low: 0.001, high: 0.1, log: true}
    is a range, a single value fixes.

    Examples:

      convsweep sweep --data digits

      convsweep sweep --data mnist --trials 24 --epochs 3 --set "model.kernel_size=[3, 5]"

      convsweep sweep photos.yaml --time-budget 2h

      convsweep sweep --data digits --goal parameters --constraint "latency_ms <= 5"
    """
    options: dict[str, Any] = {key: value for key, value in locals().items() if key in KEYS and value is not None}
    settings = (read_sweep_file(file) if file else {}) | options
    settings["space"] = (settings.get("space") or {}) | assignments(set_)
    default_root(settings)
    where = Experiments(experiments, study_storage, storage_path)
    if "data" not in settings:
        raise ValueError(f"Say which data: --data with {DATA_HELP}")
    settings.setdefault("name", free_name(DataConfig(data=settings["data"]).name, Studies(where).names()))
    config = make_config(settings)
    from cluster.sweep import start

    with activity.decoding() as on_progress:
        _report(start(config, where, address, on_progress), where, as_json)


def resume(
    name: str,
    takeover: Takeover = False,
    address: Address = None,
    experiments: Folder = DEFAULT_FOLDER,
    study_storage: StudyStorage = None,
    storage_path: StoragePath = None,
    as_json: Json = False,
) -> None:
    """Go on with a sweep that was interrupted or killed.

    What is finished is not run again; trials that were running go on after their last epoch.
    """
    from cluster import sweep

    where = Experiments(experiments, study_storage, storage_path)
    with activity.decoding() as on_progress:
        _report(sweep.resume(name, where, address, on_progress, takeover), where, as_json)


def extend(
    name: str,
    trials: Annotated[int | None, typer.Option(help="How many more trials.")] = None,
    time_budget: Annotated[str | None, typer.Option(help="How much more time: 90s, 30m, 2h.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="How many more GPU-hours.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="How much more it may cost.")] = None,
    min_gain: Annotated[float | None, typer.Option(help="Another expected gain to end below; 0: never.")] = None,
    set_: Set = None,
    takeover: Takeover = False,
    address: Address = None,
    experiments: Folder = DEFAULT_FOLDER,
    study_storage: StudyStorage = None,
    storage_path: StoragePath = None,
    as_json: Json = False,
) -> None:
    """Give a sweep more trials, time or money, also in another space: --set changes what is proposed from now on.

    Example:  convsweep extend mnist-1 --trials 20 --set "model.kernel_size=[3, 5]"
    """
    from cluster import sweep

    where = Experiments(experiments, study_storage, storage_path)
    seconds = parse_duration(time_budget) if time_budget is not None else None
    more = More(trials, seconds, assignments(set_), gpu_hours, max_cost, min_gain)
    with activity.decoding() as on_progress:
        _report(sweep.extend(name, more, where, address, on_progress, takeover), where, as_json)


def _report(outcome: Outcome, where: Experiments, as_json: bool) -> None:
    """Say how a run ended; exit status 1 when it failed, 130 when it was interrupted."""
    tables.show_outcome(outcome.sweep, outcome.state, outcome.reason, str(where.folder), as_json)
    if outcome.state != "FINISHED":
        raise typer.Exit(130 if outcome.state == "INTERRUPTED" else 1)
