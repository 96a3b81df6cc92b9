"""The options that several commands have, each declared once, and what their words mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from cluster.yaml_values import read_yaml
from trainer.costs import COSTS
from trainer.measuring import METRICS
from trainer.named_data import NAMES
from trainer.presets import PRESETS

DATA_HELP = (
    f"{', '.join(NAMES)}, or a folder with one sub-folder of images per class (optionally in train/, val/, test/)."
)

Data = Annotated[str | None, typer.Option(help=DATA_HELP)]
DataRoot = Annotated[
    str | None,
    typer.Option(
        help="torchvision's folder (MNIST/raw, ...), looked in before anything is downloaded. [env: CONVSWEEP_DATA]"
    ),
]
Cache = Annotated[str | None, typer.Option(help="Where decoded images are kept. [default: ~/.cache/convsweep]")]
ImageSize = Annotated[int | None, typer.Option(help="Width and height that images get. [default: 64 for folders]")]
SkipBroken = Annotated[bool | None, typer.Option("--skip-broken", help="Leave out files that are no images.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images of a trial that is not pruned.")]
Preset = Annotated[str | None, typer.Option(help=f"A named configuration: {', '.join(PRESETS)}.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, order, augmentation and search. [default: 0]")]
Metric = Annotated[
    str | None,
    typer.Option(help=f"What makes an epoch and a trial the best: {', '.join(METRICS)}. [default: accuracy]"),
]
Goals = Annotated[
    list[str] | None,
    typer.Option("--goal", help=f"A goal besides the metric, again for another: {', '.join(COSTS)}, each to be low."),
]
Constraints = Annotated[
    list[str] | None,
    typer.Option(
        "--constraint", metavar="'COST <= N'", help="What a trial must keep to be trained: 'latency_ms <= 5'."
    ),
]
LatencyBatch = Annotated[int | None, typer.Option(help="How many images at a time latency_ms is of. [default: 1]")]
Workers = Annotated[
    int | None, typer.Option(help="Ranks of one worker group: data-parallel training of each trial. [default: 1]")
]
CpusPerWorker = Annotated[float | None, typer.Option(help="CPUs of one rank. [default: by the machine]")]
GpusPerWorker = Annotated[float | None, typer.Option(help="GPUs of one rank, also 0.25. [default: 1 if there are any]")]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", help="A running Ray cluster: auto, host:port. [default: this machine]"),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A hyperparameter, such as model.kernel_size=5; a list or range in YAML for a sweep.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
Folder = Annotated[
    Path,
    typer.Option("--experiments", envvar="CONVSWEEP_EXPERIMENTS", help="Holds the study database and the checkpoints."),
]
StudyStorage = Annotated[
    str | None,
    typer.Option(
        envvar="CONVSWEEP_STUDY_STORAGE",
        help="The study database's URL, such as postgresql://... [default: SQLite there]",
    ),
]
StoragePath = Annotated[
    str | None, typer.Option(envvar="CONVSWEEP_STORAGE_PATH", help="Where checkpoints go: a shared folder or s3://...")
]
Takeover = Annotated[
    bool, typer.Option("--takeover", help="Override the process that ran it on another machine and is dead.")
]
DEFAULT_FOLDER = Path("experiments")


def assignments(texts: list[str] | None) -> dict[str, Any]:
    """The values of NAME=VALUE texts, each value read as YAML."""
    values = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, such as model.kernel_size=5, but got {text!r}.")
        try:
            values[name.strip()] = read_yaml(value)
        except yaml.YAMLError as error:
            raise ValueError(
                f"--set {name}: {value!r} is no YAML value such as 3, relu, [3, 5] or {{low: 1, high: 2}}."
            ) from error
    return values


def default_root(settings: dict[str, Any]) -> None:
    """Where nothing says where the data are, `CONVSWEEP_DATA` does."""
    if settings.get("data_root") is None:
        settings["data_root"] = os.environ.get("CONVSWEEP_DATA")


def free_name(base: str, taken: list[str]) -> str:
    """`base` with the first number that is not taken."""
    base = "".join(c if c.isalnum() or c in "._-" else "-" for c in base).strip("._-") or "sweep"
    number = 1
    while f"{base}-{number}" in taken:
        number += 1
    return f"{base}-{number}"
