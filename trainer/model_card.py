"""The model card: what a reader of a bundle's README needs to use the model and to judge it."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch

from trainer.data import ImageData
from trainer.evaluation import Scores
from trainer.fold_scores import FoldFigures
from trainer.hyperparameters import ModelConfig, TrialConfig, describe
from trainer.model import Classifier, parameter_count
from trainer.seed_figures import SeedFigures


def model_card(
    model: Classifier,
    config: TrialConfig,
    data: ImageData,
    scores: Mapping[str, Scores],
    latency: Mapping[str, float],
    command: str,
    final: bool = False,
    seeds: SeedFigures | None = None,
    folds: FoldFigures | None = None,
) -> str:
    """The card in Markdown. A `final` model was trained on the validation images too, and is scored on the test split alone."""
    channels, height, width = data.image_shape
    colour = "RGB" if channels == 3 else "gray"
    mode = "RGB" if channels == 3 else "L"
    rows = "\n".join(
        f"| {split} | {s.images:,} | {s.accuracy:.4f} | {s.macro_f1:.4f} | {s.loss:.4f} | {s.calibration_error:.4f} |"
        for split, s in scores.items()
    )
    worst = _worst_classes(list(scores.values())[-1], data.classes) if scores else "nobody knows"
    hyperparameters = "\n".join(f"| `{name}` | {value} | {doc} |" for name, value, doc in describe(config))
    transposed = (
        "pixels = numpy.asarray(image)[None, None]"
        if channels == 1
        else "pixels = numpy.asarray(image).transpose(2, 0, 1)[None]"
    )
    speed = ", ".join(f"{name}: {value:.2f} ms" for name, value in latency.items())
    return f"""# A classifier for {data.name}

{_kind(config.model)} that tells {len(data.classes)} classes apart in {colour} images of {width}x{height} pixels:
{", ".join(data.classes[:50])}{" ..." if len(data.classes) > 50 else ""}.

It was found and trained by convsweep. It has {parameter_count(model):,} parameters. Latency on {platform.processor() or platform.machine()}
({torch.get_num_threads()} threads), {speed}.

## How good it is

| split | images | accuracy | macro-F1 | loss | calibration error |
|---|---|---|---|---|---|
{rows}

{_final_words(seeds) if final else _SEARCHED_WORDS}{_fold_words(final, folds)} Hardest classes, by the share of their images that is recognised: {worst}.

The figures hold for images like those of {data.name}. On other images the model still answers with one of its classes.

## How to use it

`model.pt2` takes raw images, uint8 `(N, {channels}, {height}, {width})`, 0 to 255, any N, and gives probabilities `(N, {len(data.classes)})` in the order of
`classes.json`; the normalisation is inside.

```python
import json, numpy, torch
from PIL import Image
image = Image.open("image.png").convert("{mode}").resize(({width}, {height}))
{transposed}
probabilities = torch.export.load("model.pt2").module()(torch.tensor(pixels))[0]
print(json.load(open("classes.json"))[probabilities.argmax()], probabilities.max().item())
```

Or `convsweep predict THIS_FOLDER IMAGE...`.

## How it was trained

    {command}
{_FINAL_COMMAND if final else ""}
| hyperparameter | value | meaning |
|---|---|---|
{hyperparameters}

torch {torch.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}.
"""


_SEARCHED_WORDS = """The weights are those of the best epoch on the validation split, which the search saw; the test split, if there is one, was
used for this table alone."""
_FINAL_COMMAND = """
with the validation images among the training images, and the weights of the last epoch.
"""


def _final_words(seeds: SeedFigures | None) -> str:
    text = """The weights are those of the last epoch of a training on the training and the validation images together: there is no validation
score, as the model has seen those images."""
    if seeds is None:
        return text
    chosen = f"""
It was chosen among {seeds.compared} configurations by such figures, which makes its own a little too good."""
    return f"""{text}

The configuration has on the test split: {seeds}. This is the model of seed {seeds.seed}, the one in the
middle, so that it is not the best by luck.{chosen if seeds.compared > 1 else ""}"""


def _fold_words(final: bool, folds: FoldFigures | None) -> str:
    if folds is None:
        return ""
    whose = (
        "whose weights these are not"
        if final
        else "of the first of which these are the weights; its held-out images are the validation split"
    )
    return f"""
The configuration was scored by cross-validation: {folds} (95 % interval), from as many trainings, {whose}."""


_KINDS = {
    "convnet": "A convolutional network",
    "resnet": "A residual network",
    "rnn": "A recurrent network, which reads the rows of an image,",
    "transformer": "A vision transformer",
}


def _kind(config: ModelConfig) -> str:
    """What the network is, as the beginning of a sentence."""
    if config.torchvision is None:
        return _KINDS[config.family]
    begun = ", which began with torchvision's weights from ImageNet," if config.pretrained else ""
    return f"A network of torchvision's kind {config.torchvision}{begun}"


def _worst_classes(scores: Scores, classes: tuple[str, ...]) -> str:
    shares = [(row[i] / sum(row), classes[i]) for i, row in enumerate(scores.confusion) if sum(row)]
    return ", ".join(f"{name} ({share:.1%})" for share, name in sorted(shares)[:3])
