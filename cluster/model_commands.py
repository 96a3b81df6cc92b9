"""The commands about one model, its data or a cluster: `train`, `export` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import activity, tables
from cluster.experiments import Experiments
from cluster.options import (
    DATA_HELP,
    DEFAULT_FOLDER,
    Address,
    Cache,
    CpusPerWorker,
    Data,
    DataRoot,
    Epochs,
    Folder,
    GpusPerWorker,
    ImageSize,
    Json,
    Metric,
    Seed,
    Set,
    SkipBroken,
    StoragePath,
    StudyStorage,
    Workers,
    assignments,
    default_root,
)
from cluster.plan import GroupShape
from cluster.preference import preference
from cluster.progress import say_skipped
from cluster.record import SweepRecord, TrialRecord
from cluster.studies import Studies
from trainer.data import DataConfig
from trainer.hyperparameters import TrialConfig, flatten, refuse_without_effect, unflatten
from trainer.measuring import ACCURACY, metric_named
from trainer.presets import PRESETS, preset


def train(
    data: Data = None,
    preset_name: Annotated[
        str | None, typer.Option("--preset", help=f"Start from: {', '.join(PRESETS)}. [default: default]")
    ] = None,
    epochs: Epochs = None,
    set_: Set = None,
    seed: Seed = None,
    to: Annotated[Path | None, typer.Option(help="Also export the trained model into this folder.")] = None,
    workers: Workers = None,
    cpus_per_worker: CpusPerWorker = None,
    gpus_per_worker: GpusPerWorker = None,
    metric: Metric = None,
    validation_fraction: Annotated[float | None, typer.Option(help="Share held out to choose the best epoch.")] = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    address: Address = None,
    experiments: Folder = DEFAULT_FOLDER,
    storage_path: StoragePath = None,
    as_json: Json = False,
) -> None:
    """Train one configuration, without a search, and score its best epoch on the test split.

    The hyperparameters and their values are in docs/hyperparameters.md.

    Example:  convsweep train --data mnist --preset mnist-3conv --set optimizer.learning_rate=0.002
    """
    if data is None:
        raise ValueError(f"Say which data: --data with {DATA_HELP}")
    goal = metric_named(metric or ACCURACY.name)
    given = assignments(set_) | {
        key: value for key, value in (("training.epochs", epochs), ("training.seed", seed)) if value is not None
    }
    config: TrialConfig = unflatten(given, preset(preset_name or "default"))
    refuse_without_effect(given, config)
    settings: dict[str, Any] = {"data_root": data_root}
    default_root(settings)
    choices = {
        "root": settings["data_root"],
        "cache": cache,
        "image_size": image_size,
        "validation_fraction": validation_fraction,
        "skip_broken": skip_broken,
    }
    data_config = DataConfig(data=data, **{key: value for key, value in choices.items() if value is not None})
    own_shape = {"workers": workers, "cpus_per_worker": cpus_per_worker, "gpus_per_worker": gpus_per_worker}
    asked = {key: value for key, value in own_shape.items() if value is not None}
    shape = GroupShape(**asked, groups=1)  # type: ignore[arg-type]
    from cluster.export import Options, rebuild, score_splits, training_command
    from cluster.export import export as write
    from cluster.single import train_here, train_on_group
    from trainer.bundle_writing import check_target
    from trainer.data import load_data
    from trainer.model import parameter_count
    from trainer.origin import Origin

    if to:
        check_target(to)  # not only when the training is through
    with activity.decoding() as on_progress:
        images = load_data(data_config, on_progress)
    say_skipped(images.skipped)
    if asked or address:
        where = Experiments(experiments, None, storage_path)
        training = train_on_group(config, data_config, shape, where, address, goal)
    else:
        training = train_here(config, images, goal)
    activity.follow(training.epochs, config.training.epochs, goal)
    assert training.checkpoint is not None
    model = rebuild(training.checkpoint, images)
    scores = score_splits(model, images)
    if to:
        command = training_command(config, data_config, goal.name)
        origin = Origin(epochs=training.checkpoint.epoch, command=command, metric=goal)
        with activity.stepping(f"exporting to {to}") as on_step:
            write(training.checkpoint, images, origin, to, Options(on_step=on_step))
    speeds = sorted(e.images_per_second for e in training.history)
    tables.show_training(
        {
            "val_accuracy": scores["validation"].accuracy,
            "test_accuracy": scores["test"].accuracy if "test" in scores else None,
            "epochs": len(training.history),
            "best_epoch": training.checkpoint.epoch,
            "metric": goal.field,
            "train_seconds": round(training.seconds, 3),
            "images_per_second": round(speeds[len(speeds) // 2], 1),
            "parameters": parameter_count(model),
            "bundle": str(to) if to else None,
            "config": flatten(config),
            "history": [e.to_json() for e in training.history],
        },
        goal,
        as_json,
    )


def export(
    name: str,
    trial: Annotated[
        str, typer.Option(help="A trial's number, or best: what `confirm` recommends, if it ran.")
    ] = "best",
    to: Annotated[Path | None, typer.Option(help="The folder. [default: bundles/NAME-TRIAL]")] = None,
    samples: Annotated[
        int, typer.Option(help="Also write this many test images into samples/, to try the bundle with.")
    ] = 0,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write model.int8.onnx, calibrated with training images.")
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Also write model.fp16.onnx, of half the size.")] = False,
    max_drop: Annotated[
        float, typer.Option(help="Refuse when int8 or fp16 lowers the validation accuracy by more than this.")
    ] = 0.01,
    data_root: DataRoot = None,
    cache: Cache = None,
    experiments: Folder = DEFAULT_FOLDER,
    study_storage: StudyStorage = None,
    storage_path: StoragePath = None,
    as_json: Json = False,
) -> None:
    """Export a trial's model as a bundle: a folder that classifies images without convsweep.

    It has the network as ONNX and as torch.export's graph, each run in a fresh process against the live model before the folder is
    there, the weights, the scores, a model card and checksums.

    Of a sweep that was confirmed, unless --trial says a number, it is the final model of the recommended configuration.

    Examples:

      convsweep export mnist-1

      convsweep export mnist-1 --trial 7 --to seven --int8 --max-drop 0.005
    """
    if samples < 0:
        raise ValueError(f"--samples must be at least 0, but got {samples}.")
    where = Experiments(experiments, study_storage, storage_path)
    sweep_record = Studies(where).read(name)
    preferred = preference(sweep_record) if trial == "best" else None
    record = find_trial(sweep_record, trial) if preferred is None else sweep_record.trial(preferred.choice.trial)
    if preferred is not None:
        typer.echo(preferred.reason, err=True)
    from cluster.export import Options, export_final, export_trial
    from trainer.bundle_writing import Smaller

    folder = to or Path("bundles") / f"{name}-{record.number}"
    smaller = Smaller(tuple(p for p, wanted in (("int8", int8), ("fp16", fp16)) if wanted), max_drop)
    with (
        activity.decoding() as on_progress,
        activity.stepping(f"exporting trial {record.number} to {folder}") as on_step,
    ):
        options = Options(data_root, cache, samples, smaller, on_progress, on_step)
        if preferred is None:
            exported = export_trial(where, sweep_record, record, folder, options)
        else:
            exported = export_final(where, sweep_record, preferred, folder, options)
    tables.show_export(exported, as_json)


def doctor(
    data: Annotated[str | None, typer.Option(help="A folder with one sub-folder of images per class.")] = None,
    # Not RAY_ADDRESS as elsewhere: in a job on a cluster that is always set.
    address: Annotated[str | None, typer.Option(help="A running Ray cluster: auto, host:port.")] = None,
    experiments: Folder = DEFAULT_FOLDER,
    storage_path: StoragePath = None,
    as_json: Json = False,
) -> None:
    """Look for what spoils a data set, or a cluster.

    In a folder of images: broken files, duplicates, scarce classes, mixed kinds of images. On a cluster: versions that differ, GPUs
    that torch does not see, nodes that do not reach each other, storage that is not shared, clocks that differ, open ports.

    Exit status 1 when there is something that a sweep would refuse, that makes its scores wrong, or that lets strangers in.

    Examples:

      convsweep doctor --data photos

      convsweep doctor --address auto
    """
    if (data is None) == (address is None):
        raise ValueError("Say what to look at: a folder of images, --data FOLDER, or a cluster, --address auto.")
    if address is not None:
        from cluster.inspection import inspect as inspect_cluster

        with activity.working("asking every node"):
            verdicts = inspect_cluster(address, Experiments(experiments, None, storage_path))
        tables.show_verdicts(address, verdicts, as_json)
        if any(verdict.good is False for verdict in verdicts):
            raise typer.Exit(1)
        return
    from trainer.inspection import inspect

    assert data is not None
    with activity.decoding() as on_progress:
        found = inspect(Path(data), on_progress)
    tables.show_inspection(found, as_json)
    if found.errors:
        raise typer.Exit(1)


def find_trial(sweep: SweepRecord, trial: str) -> TrialRecord:
    """The trial with this number, or the best. Raises ValueError when there is none."""
    if trial == "best":
        return sweep.best_or_error()
    if not trial.isdecimal():
        raise ValueError(f"A trial is a number or `best`, but got {trial!r}.")
    return sweep.trial(int(trial))
