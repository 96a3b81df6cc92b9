"""What is wrong with a folder of images before anybody trains on it: `convsweep doctor --data FOLDER`."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.folders import find
from trainer.images import BrokenImageError, opened

FEW = 20
"""A class with fewer training images is told of: there is too little to learn from and to validate with."""
IMBALANCE = 10
"""So many times as many images in the largest class as in the smallest are told of."""
ERROR, WARNING, NOTE = "error", "warning", "note"
_ORIENTATION = 0x0112  # of EXIF
_KINDS = {
    "P": "palette",
    "I;16": "16 bits",
    "I;16B": "16 bits",
    "I;16L": "16 bits",
    "I": "32 bits",
    "RGBA": "transparency",
    "LA": "transparency",
    "PA": "transparency",
    "CMYK": "CMYK",
    "1": "black and white",
    "L": "gray",
    "RGB": "RGB",
}


@dataclass(frozen=True)
class Finding:
    """Something that was found: an ERROR that a sweep would refuse or that makes its scores wrong, a WARNING, or a NOTE."""

    severity: str
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """What a folder has: `counts` are the readable images of each class, by split."""

    root: Path
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that must be mended."""
        return tuple(f for f in self.findings if f.severity == ERROR)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"folder": str(self.root), "counts": self.counts, "findings": [vars(f) for f in self.findings]}


@dataclass(frozen=True)
class _Seen:
    """One readable image: the hash of its pixels, its size and kind, and whether EXIF data turn it."""

    pixels: bytes
    size: tuple[int, int]
    kind: str
    turned: bool


def inspect(root: Path, on_progress: Callable[[str, int, int], None] | None = None) -> Inspection:
    """Look at every image of the folder. Raises ValueError when it is no folder of class folders."""
    if not root.is_dir():
        raise ValueError(f"There is no folder {str(root)!r}.")
    source = find(root, None, skip_broken=True)
    files = [(split, path, label) for split, found in source.splits.items() for path, label in found]
    seen: dict[Path, _Seen] = {}
    broken: list[str] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        answers = pool.map(_look, (path for _, path, _ in files))
        for done, ((_, path, _), answer) in enumerate(zip(files, answers, strict=True), 1):
            if isinstance(answer, _Seen):
                seen[path] = answer
            else:
                broken.append(str(answer))
            if on_progress:
                on_progress("looking at the images", done, len(files))
    counts = {
        split: {name: sum(p in seen and i == label for p, i in found) for label, name in enumerate(source.classes)}
        for split, found in source.splits.items()
    }
    places = {path: (split, source.classes[label]) for split, path, label in files}
    findings = [
        Finding(ERROR, f"{len(broken)} file(s) cannot be read as images; --skip-broken leaves them out.", tuple(broken))
    ]
    findings = [*(findings if broken else []), *_duplicates(seen, places), *_classes(counts), *_kinds(seen)]
    return Inspection(root, counts, tuple(findings))


def _look(path: Path) -> _Seen | BrokenImageError:
    try:
        with opened(path) as image:
            image.load()
            turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
            digest = hashlib.sha256(f"{image.mode} {image.size}".encode() + _content(image)).digest()
            return _Seen(digest, image.size, _KINDS.get(image.mode, image.mode), turned)
    except BrokenImageError as error:
        return error


def _content(image: Image.Image) -> bytes:
    palette = image.palette.tobytes() if image.palette else b""
    return image.tobytes() + palette


def _duplicates(seen: dict[Path, _Seen], places: dict[Path, tuple[str, str]]) -> list[Finding]:
    """Groups of equal images: across splits they make scores too good, under two classes they cannot be learnt."""
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for path, image in seen.items():
        groups[image.pixels].append(path)
    across, contradicting, inside = list[str](), list[str](), list[str]()
    for paths in groups.values():
        if len(paths) > 1:
            splits, classes = {places[p][0] for p in paths}, {places[p][1] for p in paths}
            kind = contradicting if len(classes) > 1 else across if len(splits) > 1 else inside
            kind.append(" = ".join(map(str, paths)))
    told = (
        (ERROR, contradicting, "image(s) are there under two classes: one of them is wrong."),
        (ERROR, across, "image(s) are in more than one split: the scores on them are too good. Keep each in one."),
        (
            WARNING,
            inside,
            "image(s) are there more than once in a split; a split that is held out of it may share them.",
        ),
    )
    return [Finding(severity, f"{len(found)} {text}", tuple(found)) for severity, found, text in told if found]


def _classes(counts: dict[str, dict[str, int]]) -> list[Finding]:
    train = counts["train"]
    few = {name: count for name, count in train.items() if count < FEW}
    lonely = [name for name, count in few.items() if count < 2]
    findings = []
    if lonely:
        findings.append(Finding(ERROR, f"Each class needs two training images, but {', '.join(lonely)} have fewer."))
    scarce = tuple(f"{name}: {count}" for name, count in few.items() if name not in lonely)
    if scarce:
        findings.append(Finding(WARNING, f"{len(scarce)} class(es) have fewer than {FEW} training images.", scarce))
    smallest, largest = min(train, key=lambda n: train[n]), max(train, key=lambda n: train[n])
    if train[largest] > IMBALANCE * max(1, train[smallest]):
        findings.append(
            Finding(
                WARNING,
                f"{largest!r} has {train[largest]:,} training images and {smallest!r} {train[smallest]:,}: accuracy says little "
                "about the small class. Look at macro-F1.",
            )
        )
    for split, found in counts.items():
        missing = [name for name, count in found.items() if not count]
        if split != "train" and missing:
            findings.append(Finding(WARNING, f"The {split} split has no image of {', '.join(missing)}."))
    return findings


def _kinds(seen: dict[Path, _Seen]) -> list[Finding]:
    """Mixed sizes and kinds are all brought to one form, in training as in `predict`; whoever took them may not know."""
    if not seen:
        return []
    findings = []
    kinds, sizes = Counter(image.kind for image in seen.values()), {image.size for image in seen.values()}
    if len(kinds) > 1:
        found = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        findings.append(Finding(NOTE, f"The images are of several kinds: {found}. They all become gray or RGB."))
    turned = sum(image.turned for image in seen.values())
    if turned:
        findings.append(Finding(NOTE, f"{turned:,} image(s) are turned as their EXIF data say."))
    if len(sizes) > 1:
        areas = sorted(sizes, key=lambda size: size[0] * size[1])
        (w0, h0), (w1, h1) = areas[0], areas[-1]
        side = statistics.median(min(image.size) for image in seen.values())
        findings.append(
            Finding(
                NOTE,
                f"Sizes differ, from {w0}x{h0} to {w1}x{h1}; the shorter side is {side:g} pixels in the median. All get "
                "--image-size.",
            )
        )
    return findings
