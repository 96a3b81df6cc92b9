"""The command `predict`: classify images with a bundle, here or on a cluster."""

from __future__ import annotations

import contextlib
import sys
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from cluster.options import Json as JsonOption
from cluster.prediction_progress import PredictionProgress
from cluster.prediction_writers import Csv, Form, Json, Lines, check_target, writing
from trainer.bundle import GRAPHS, Bundle
from trainer.predicting import BATCH_SIZE
from trainer.predicting import predict as predict_here
from trainer.sources import Sources


def predict(
    bundle: Path,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="Files, folders, quoted globs; - is standard input: an image, or paths."
        ),
    ],
    top: Annotated[int, typer.Option(help="How many classes to show for each image.")] = 5,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write into this file, whole or not at all; .json and .csv say the form too."
        ),
    ] = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Write CSV: path, label, probability, label2, ..., error.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images that are classified at a time.")] = BATCH_SIZE,
    precision: Annotated[
        str,
        typer.Option(help=f"Which of the bundle's graphs: {', '.join(GRAPHS)}; `export` writes the others if asked."),
    ] = "fp32",
    # Not RAY_ADDRESS as elsewhere: without the option no Ray is needed.
    address: Annotated[
        str | None,
        typer.Option(help="Classify on a running Ray cluster, auto or host:port, whose nodes all see the files."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Classify images with a bundle. Needs no Ray, no sweep and no data set.

    Of a folder, all images below it are classified; what is hidden, or is no image by its ending (.txt, .json), is left out. What is
    named, or matches a glob, is tried whatever it is called. A file that cannot be read is told of and does not end the command: the
    others are classified, and the exit status is 1.

    Examples:

      convsweep predict bundle photo.jpg

      convsweep predict bundle photos --csv --top 3 --to photos.csv

      convsweep predict bundle 'photos/**/*.jpg' --json

      curl -s https://example.org/cat.jpg | convsweep predict bundle -

      find photos -name '*.jpg' -newer last -print0 | convsweep predict bundle -

      convsweep predict bundle /shared/photos --address auto --to photos.json
    """
    for name, number in (("top", top), ("batch-size", batch_size)):
        if number < 1:
            raise ValueError(f"--{name} must be at least 1, but got {number}.")
    if as_json and as_csv:
        raise ValueError("Say one of --json and --csv.")
    if to is not None:
        check_target(to)
    loaded = Bundle(bundle, precision, threads=None if address is None else 1)  # there is an actor for each core
    sources = Sources(images)
    progress = PredictionProgress(sources.count(), alone=to is not None or not sys.stdout.isatty())
    if address is None:
        results = predict_here(loaded, sources, top, batch_size)
    else:
        from cluster.distributed_predict import predict_on_cluster

        results = predict_on_cluster(loaded, sources, address, top, batch_size, progress)
    with contextlib.closing(results), progress:
        form = _form(as_json, as_csv, to, min(top, len(loaded.classes)))
        first = next(results, None)
        if first is None:  # said before anything is written
            raise ValueError(sources.nothing())
        with writing(form, to, batch_size) as write:
            for found in chain([first], results):
                write(found)
                progress.found(found)
    if sources.left_out:
        typer.echo(sources.said_left_out(), err=True)
    if progress.failed:
        raise RuntimeError(f"{progress.failed:,} of {progress.done:,} images could not be read.")


def _form(as_json: bool, as_csv: bool, to: Path | None, columns: int) -> Form:
    ending = to.suffix.lower() if to is not None else ""
    if as_json or (ending == ".json" and not as_csv):
        return Json()
    return Csv(columns) if as_csv or ending == ".csv" else Lines()
