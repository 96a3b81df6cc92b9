"""The model card: what a reader of a bundle's README needs to use the model, to judge it and to make it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer.bundle import GRAPHS, PICTURES
from trainer.data import ImageData
from trainer.domains import Value
from trainer.evaluation import Scores, class_scores
from trainer.fold_scores import FoldFigures
from trainer.hyperparameters import ModelConfig, TrialConfig, describe, flatten
from trainer.model import Classifier, parameter_count
from trainer.origin import Origin, Search
from trainer.seed_figures import SeedFigures
from trainer.verification import Check

if TYPE_CHECKING:
    from trainer.bundle_writing import Written

MOST_CLASSES = 50
FEW_IMAGES = 20


def model_card(
    model: Classifier,
    config: TrialConfig,
    data: ImageData,
    written: Written,
    origin: Origin,
    surroundings: Mapping[str, str],
) -> str:
    """The card in Markdown. A `final` model was trained on the validation images too, and is scored on the test split alone."""
    sections = [
        _what_it_is(model, config, data, written),
        _how_good(data, written, origin),
        _how_to_use(data, written),
        _limits(data, written),
        _data(data),
        _how_found(config, origin),
        _how_trained(config, origin),
        _where(origin, surroundings),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _what_it_is(model: Classifier, config: TrialConfig, data: ImageData, written: Written) -> str:
    channels, height, width = data.image_shape
    names = ", ".join(map(_cell, data.classes[:MOST_CLASSES]))
    return f"""# A classifier for {_cell(data.name)}

{_kind(config.model)} that says which of {len(data.classes)} classes {_colour(channels)} image of {width}x{height} pixels shows:
{names}{" ..." if len(data.classes) > MOST_CLASSES else ""}.

It is for images like those that it was trained on, one object of one of these classes each. It was found and trained by convsweep, and
has {parameter_count(model):,} parameters."""


# ---- how good and how fast ----


def _how_good(data: ImageData, written: Written, origin: Origin) -> str:
    rows = [
        (split, f"{s.images:,}", _with_interval(s), f"{s.macro_f1:.4f}", f"{s.loss:.4f}", f"{s.calibration_error:.4f}")
        for split, s in written.scores.items()
    ]
    heads = ("split", "images", "accuracy (95 % interval)", "macro-F1", "loss", "calibration error")
    return f"""## How good it is

{_table(heads, rows) if rows else "There are no images that the model has not seen, so there are no scores of it."}

The intervals (Wilson) say what the number of images leaves open, not what another training would give.
{_final_words(origin.seeds) if origin.final else _SEARCHED_WORDS}{_fold_words(origin.final, origin.folds)}
{_hardest(data, written)}

{_files(written)}"""


def _hardest(data: ImageData, written: Written) -> str:
    """Which classes the model knows least, and the pictures, on the last split that has scores."""
    if not written.scores:
        return ""
    split = [*written.scores][-1]
    return f"""
Hardest classes on the {split} split, by the share of their images that is recognised: {_worst(written.scores[split], data.classes)}.

![Confusion matrix on the {split} split]({PICTURES[0]}) ![Reliability diagram on the {split} split]({PICTURES[1]})"""


def _files(written: Written) -> str:
    """Size, latency and verification of each file."""
    rows = []
    for name, check in written.checks.items():
        times = [_milliseconds(check, n) for n in (1, 64)]
        agreement = f"{check.images - check.different_labels} of {check.images} labels"
        size = f"{written.sizes[name] / 1e6:.2f} MB"
        rows.append((f"`{name}`", size, *times, f"{check.max_difference:.1g}", agreement))
    heads = ("file", "size", "one image", "64 images", "largest difference", "agreement")
    images = next(iter(written.checks.values())).images
    cost = [
        f"`{GRAPHS[precision]}` has an accuracy of {a.accuracy:.4f} on the validation split, where float32 has {a.exact:.4f}: "
        f"a drop of {a.drop:.4f}."
        for precision, a in written.smaller.items()
    ]
    return "\n\n".join(
        [
            _table(heads, rows),
            f"Times are medians with the 95th percentile, on the processor that is named below. Each file was run in a fresh process "
            f"on {images} real images, and its probabilities and labels were compared with those of the model that was trained.",
            *cost,
        ]
    )


def _milliseconds(check: Check, images: int) -> str:
    found = check.latency.get(images)
    return f"{found.median:.2f} ({found.p95:.2f}) ms" if found else ""


def _with_interval(scores: Scores) -> str:
    from scipy.stats import binomtest

    right = round(scores.accuracy * scores.images)
    low, high = binomtest(right, scores.images).proportion_ci(0.95, "wilson")
    return f"{scores.accuracy:.4f} ({low:.4f} to {high:.4f})"


_SEARCHED_WORDS = """The weights are those of the best epoch on the validation split, which the search saw; the test split, if there is one, was
used for this table alone."""


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


def _worst(scores: Scores, classes: tuple[str, ...]) -> str:
    shares = [(row[i] / sum(row), _cell(classes[i])) for i, row in enumerate(scores.confusion) if sum(row)]
    return ", ".join(f"{name} ({share:.1%})" for share, name in sorted(shares)[:5])


# ---- how to use it, and for what not ----


def _how_to_use(data: ImageData, written: Written) -> str:
    channels, height, width = data.image_shape
    mode, pixels = ("RGB", "numpy.asarray(image).transpose(2, 0, 1)[None]") if channels == 3 else ("L", _GRAY)
    smaller = [GRAPHS[precision] for precision in written.smaller]
    others = f"\nThe same holds for {' and '.join(f'`{name}`' for name in smaller)}." if smaller else ""
    return f"""## How to use it

`model.onnx` takes raw images, uint8 `(N, {channels}, {height}, {width})`, 0 to 255, any N, and gives probabilities `(N, {len(data.classes)})` in the order of
`classes.json`; the normalisation is inside. `pip install onnxruntime pillow` is all that it needs.{others}

```python
import json, numpy, onnxruntime
from PIL import Image
image = Image.open("image.png").convert("{mode}").resize(({width}, {height}))
pixels = {pixels}
probabilities = onnxruntime.InferenceSession("model.onnx").run(None, {{"images": pixels}})[0][0]
print(json.load(open("classes.json"))[probabilities.argmax()], probabilities.max())
```

`torch.export.load("model.pt2").module()` takes and gives the same as tensors. `convsweep predict THIS_FOLDER IMAGE...` also turns photographs as
their EXIF data say and cuts them to the aspect ratio, as the training images were. `sha256sum --check SHA256SUMS` says whether the
files are those that were exported."""


_GRAY = "numpy.asarray(image)[None, None]"


def _limits(data: ImageData, written: Written) -> str:
    _, height, width = data.image_shape
    points = [
        "It always answers with one of its classes, also for what is none of them, and may be sure of it.",
        f"Images become {width}x{height} pixels: what cannot be told apart at that size is not.",
        "Other cameras, light, framing or image processing than in the data make it worse; by how much, these figures do not say.",
    ]
    if written.scores:
        split, scores = [*written.scores.items()][-1]
        points.append(
            f"Its probabilities differ from the share that is right by {scores.calibration_error:.4f} on average on the {split} split."
        )
        images = class_scores(np.array(scores.confusion)).support
        scarce = [_cell(data.classes[i]) for i in np.argsort(images, kind="stable") if images[i] < FEW_IMAGES]
        if scarce:
            points.append(
                f"Of {len(scarce)} class(es) the {split} split has fewer than {FEW_IMAGES} images, too few to judge them: {_some(scarce)}."
            )
    return "## Known limits\n\n" + "\n".join(f"* {point}" for point in points)


# ---- what it was made of ----


def _data(data: ImageData) -> str:
    splits = {"train": data.train, "validation": data.validation} | ({"test": data.test} if data.test else {})
    rows = [(name, f"{len(split):,}", f"`{split.fingerprint()}`") for name, split in splits.items()]
    counts = {
        name: np.bincount(split.labels[split.rows], minlength=len(data.classes)) for name, split in splits.items()
    }
    classes = [
        (_cell(label), *(f"{counts[name][i]:,}" for name in splits))
        for i, label in enumerate(data.classes[:MOST_CLASSES])
    ]
    more = len(data.classes) - MOST_CLASSES
    skipped = f"\n\n{len(data.skipped)} file(s) that are no images were left out." if data.skipped else ""
    return f"""## The data

{_table(("split", "images", "SHA-256 of its images and labels"), rows)}

{_table(("class", *splits), classes)}{f"{chr(10)}{chr(10)}And {more} more classes." if more > 0 else ""}{skipped}"""


def _how_found(config: TrialConfig, origin: Origin) -> str:
    search = origin.search
    if search is None:
        return (
            "## How it was found\n\nIt is a single training of a configuration that somebody gave: there was no search."
        )
    states = ", ".join(f"{count} {state.lower()}" for state, count in search.trials.items() if count)
    value = "" if search.value is None else f", validation {search.metric.label} {search.value:.4f}"
    rows = [(f"`{name}`", choices) for name, choices in search.space.items()]
    space = _table(("hyperparameter", "searched in"), rows) if rows else "Nothing was left to search."
    return f"""## How it was found

Trial {search.trial}{value}, of the sweep {search.sweep}: {states}. The sampler was {search.sampler}, the pruner {search.pruner}, the aim
{search.metric.label}. The budget was {search.budget}; spent were {search.spent}.

{_against_baseline(config, search)}

{space}"""


def _against_baseline(config: TrialConfig, search: Search) -> str:
    baseline = search.baseline
    if baseline is None:
        return "No preset ran to its end beside it, so there is nothing to compare it with."
    if baseline.trial == search.trial:
        return f"It is the preset `{baseline.preset}` itself: the search found nothing better."
    gain = "" if search.value is None else f" The exported trial's differs by {search.value - baseline.value:+.4f}."
    here = flatten(config)
    names = dict.fromkeys([*baseline.config, *here])
    rows = [
        (f"`{name}`", _value(baseline.config.get(name)), _value(here.get(name)))
        for name in names
        if baseline.config.get(name) != here.get(name)
    ]
    return (
        f"The preset `{baseline.preset}` (trial {baseline.trial}) has a validation {search.metric.label} of {baseline.value:.4f}.{gain} "
        f"They differ in:\n\n{_table(('hyperparameter', 'preset', 'this model'), rows)}"
    )


def _how_trained(config: TrialConfig, origin: Origin) -> str:
    rows = [(f"`{name}`", _value(value), doc) for name, value, doc in describe(config)]
    final = (
        "\n\nwith the validation images among the training images, and the weights of the last epoch."
        if origin.final
        else ""
    )
    return f"""## How to make it again

    {origin.command}{final}

{_table(("hyperparameter", "value", "meaning"), rows)}"""


def _where(origin: Origin, surroundings: Mapping[str, str]) -> str:
    searched = origin.search.environment if origin.search else {}
    heads = ("", "search", "export") if searched else ("", "export")
    rows = [
        (name.replace("_", " "), *([searched.get(name, "")] if searched else []), surroundings.get(name, ""))
        for name in dict.fromkeys([*searched, *surroundings])
    ]
    return f"## Where\n\n{_table(heads, rows)}"


# ---- words ----

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


def _colour(channels: int) -> str:
    return "an RGB" if channels == 3 else "a gray"


def _value(value: Value | None) -> str:
    return "" if value is None else str(value)


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(heads)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """A name of the user's as text in Markdown, also inside a table: nothing in it is markup."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>|#!~$" else c if c.isprintable() else " " for c in text)
