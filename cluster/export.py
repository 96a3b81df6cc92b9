"""From a trial's weights to its bundle. Imports no Ray: a sweep's models can be exported when the cluster is gone."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from cluster.budget import duration
from cluster.experiments import Experiments
from cluster.preference import Preference
from cluster.record import SweepRecord, TrialRecord
from trainer.batches import ImageTensors
from trainer.bundle_writing import Smaller, Written, check_target, write_bundle
from trainer.checkpoint import Checkpoint
from trainer.data import DataConfig, ImageData, OnProgress, load_data
from trainer.evaluation import Scores, evaluate
from trainer.fold_scores import FoldFigures
from trainer.folds import first_fold
from trainer.hyperparameters import TrialConfig, flatten, unflatten
from trainer.loop import Evaluation, create_model, predict_split
from trainer.measuring import ACCURACY
from trainer.model import Classifier
from trainer.named_data import NAMES
from trainer.origin import Baseline, Origin, Search
from trainer.seed_figures import SeedFigures


@dataclass(frozen=True)
class Exported:
    """What an export gave: the bundle's folder and what was written there.

    `seeds` are what the configuration has over several seeds, if it was confirmed, `folds` what it has if it was cross-validated.
    """

    folder: Path
    written: Written
    seeds: SeedFigures | None = None
    folds: FoldFigures | None = None


def load_trial(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> Checkpoint:
    """The weights of a sweep's trial; of a cross-validated one those of its first fold.

    Raises ValueError, with the trials that have theirs, when they were not kept.
    """
    store = experiments.of(sweep.storage_path).checkpoints(sweep.name)
    try:
        return store.load(trial.number)
    except FileNotFoundError as error:
        kept = ", ".join(map(str, store.trials())) or "none"
        raise ValueError(
            f"The weights of trial {trial.number} ({trial.state}) were not kept. Trials with weights: {kept}; "
            "`convsweep sweep --keep-checkpoints N` keeps more."
        ) from error


def load_model(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> tuple[Checkpoint, bool]:
    """The weights that stand for a trial, and whether they are final: those of a cross-validated sweep's winner are, once it is trained
    on everything. Raises as `load_trial`.
    """
    if sweep.config.folds > 1:
        store = experiments.of(sweep.storage_path).winner(sweep.name)
        if store.configuration(trial.number) == unflatten(trial.config):
            return store.load(trial.number), True
    return load_trial(experiments, sweep, trial), False


def fold_figures(sweep: SweepRecord, trial: TrialRecord) -> FoldFigures | None:
    """What the trial has over its folds, for the bundle; None where it has none."""
    return FoldFigures(sweep.config.metric, trial.fold_values) if trial.fold_values else None


@dataclass(frozen=True)
class Options:
    """What an export may be told besides: another place for the data than the sweep had, pictures to try it with, smaller graphs.

    `on_progress` is told of the images that are decoded, `on_step` what begins.
    """

    data_root: str | None = None
    cache: str | None = None
    samples: int = 0
    smaller: Smaller = field(default_factory=Smaller)
    on_progress: OnProgress | None = None
    on_step: Callable[[str], None] | None = None

    def data_of(self, sweep: SweepRecord) -> DataConfig:
        """The sweep's data, with another root and cache where they are given."""
        config = sweep.config.data
        return replace(config, root=self.data_root or config.root, cache=self.cache or config.cache)


def export_trial(
    experiments: Experiments, sweep: SweepRecord, trial: TrialRecord, folder: Path, options: Options | None = None
) -> Exported:
    """Write the bundle of a sweep's trial to `folder`.

    Raises ValueError when the weights were not kept, when the data is not there, and when `folder` is something else.
    """
    check_target(folder)
    options = options or Options()
    checkpoint, final = load_model(experiments, sweep, trial)
    config = options.data_of(sweep)
    data = first_fold(load_data(config, options.on_progress), config, sweep.config.folds)
    origin = origin_of(checkpoint, config, sweep, trial, final=final)
    return export(checkpoint, data, origin, folder, options)


def export_final(
    experiments: Experiments, sweep: SweepRecord, preference: Preference, folder: Path, options: Options | None = None
) -> Exported:
    """Write the bundle of the final model that a confirmed sweep stands for to `folder`, as `export_trial` does.

    Raises ValueError when its weights are gone, else as there.
    """
    check_target(folder)
    options, model = options or Options(), preference.model
    try:
        checkpoint = experiments.of(sweep.storage_path).confirmed(sweep.name).load(model.key)
    except FileNotFoundError as error:
        raise ValueError(
            f"The weights of the final model of trial {model.trial}, seed {model.seed}, are gone: `convsweep confirm {sweep.name}` trains "
            f"it again, `convsweep export {sweep.name} --trial {model.trial}` takes the search's model."
        ) from error
    config = options.data_of(sweep)
    data = load_data(config, options.on_progress)
    origin = origin_of(checkpoint, config, sweep, sweep.trial(model.trial), final=True, seeds=preference.figures)
    return export(checkpoint, data, origin, folder, options)


def origin_of(
    checkpoint: Checkpoint,
    data: DataConfig,
    sweep: SweepRecord,
    trial: TrialRecord,
    *,
    final: bool = False,
    seeds: SeedFigures | None = None,
) -> Origin:
    """Where the checkpoint of a sweep's trial comes from. A `final` one of a confirmed sweep has `seeds` and no folds."""
    return Origin(
        epochs=checkpoint.epoch,
        command=training_command(checkpoint.config, data, sweep.config.metric),
        metric=sweep.config.goal,
        search=search_of(sweep, trial),
        final=final,
        seeds=seeds,
        folds=None if seeds else fold_figures(sweep, trial),
    )


def search_of(sweep: SweepRecord, trial: TrialRecord) -> Search:
    """The search that found the trial."""
    config, baseline = sweep.config, sweep.baseline
    limits = ", ".join(str(limit) for limit in config.budget.limits(sweep.spent))
    trials = f"{config.trials} trials" if config.trials else "as many trials as fit"
    begun = None
    if baseline is not None and baseline.preset is not None and baseline.value is not None:
        begun = Baseline(baseline.preset, baseline.number, baseline.value, baseline.config)
    return Search(
        sweep=sweep.name,
        trial=trial.number,
        metric=config.goal,
        value=trial.value,
        sampler=config.sampler,
        pruner=config.pruner,
        trials=sweep.counts,
        budget=f"{trials} of up to {config.epochs} epochs" + (f" ({limits})" if limits else ""),
        spent=f"{duration(sweep.timing.wall_seconds)} of wall time",
        space={name: str(domain) for name, domain in config.build_space().searched().items()},
        baseline=begun,
        environment=next((run["environment"] for run in reversed(sweep.runs) if "environment" in run), {}),
    )


def rebuild(checkpoint: Checkpoint, data: ImageData) -> Classifier:
    """The checkpoint's network on the CPU, in evaluation mode."""
    model = create_model(checkpoint.config, data, torch.device("cpu"), is_new=False)
    model.load_state_dict(checkpoint.weights)
    return model.eval()


def evaluate_splits(model: Classifier, data: ImageData, final: bool = False) -> dict[str, Evaluation]:
    """The model on the validation split, unless it is a `final` one, which has seen it, and on the test split if there is one."""
    splits = ({} if final else {"validation": data.validation}) | ({"test": data.test} if data.test else {})
    return {name: predict_split(model, ImageTensors.of(split, torch.device("cpu"))) for name, split in splits.items()}


def score_splits(model: Classifier, data: ImageData, final: bool = False) -> dict[str, Scores]:
    """The model's scores on those splits."""
    return {name: evaluate(found) for name, found in evaluate_splits(model, data, final).items()}


def export(
    checkpoint: Checkpoint, data: ImageData, origin: Origin, folder: Path, options: Options | None = None
) -> Exported:
    """Write the checkpoint's bundle to `folder`; of a final model without a word on the validation split, which it has seen."""
    options = options or Options()
    on_step = options.on_step or (lambda what: None)
    model = rebuild(checkpoint, data)
    on_step("scoring the model")
    evaluations = evaluate_splits(model, data, origin.final)
    written = write_bundle(
        folder, model, checkpoint.config, data, evaluations, origin, options.samples, options.smaller, on_step
    )
    return Exported(folder, written, origin.seeds, origin.folds)


def training_command(config: TrialConfig, data: DataConfig, metric: str = ACCURACY.name) -> str:
    """The `convsweep train` that trains this configuration again on this data, and keeps the best epoch by the metric."""
    kind = {"model.family": config.model.family, "model.blocks": config.model.blocks}
    plain = flatten(unflatten(kind)) | {name: flatten(TrialConfig())[name] for name in kind}
    words = ["convsweep", "train", "--data", data.data if data.data in NAMES else data.name]
    for option in ("validation_fraction", "image_size", "skip_broken"):
        value = getattr(data, option)
        if value != DataConfig.__dataclass_fields__[option].default:
            words += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    words += [] if metric == ACCURACY.name else ["--metric", metric]
    for name, value in flatten(config).items():
        if plain.get(name) != value:
            words += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    return shlex.join(words)
