"""What is derived from the code: `make docs` writes docs/hyperparameters.md, the tree in README.md and the cluster files."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import trainer.presets
from cluster.launch import generate
from cluster.recipes import RECIPES
from cluster.space import Choice, Range, Ranges, Space
from trainer.domains import Between, OneOf, Value, When
from trainer.hyperparameters import Parameter, TrialConfig, flatten, parameters
from trainer.named_data import NAMES
from trainer.presets import PRESETS
from trainer.torchvision_names import FAMILIES, PREFIX
from trainer.torchvision_names import NAMES as NETWORKS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("trainer", "cluster", "dashboard")
TREE = re.compile(r"(?<=<!-- tree -->\n).*?(?=<!-- /tree -->)", re.DOTALL)
LONGEST_MEANING = 95  # characters beside a file's name, so that the tree needs no scrolling


def main() -> None:
    """Write it all. Raises ValueError when README.md has lost its markers."""
    generate.main(ROOT)
    (ROOT / "docs/hyperparameters.md").write_text(hyperparameters_page())
    readme = ROOT / "README.md"
    text, replaced = TREE.subn(lambda _: readme_tree(), readme.read_text())
    if replaced != 1:
        raise ValueError(f"README.md must have <!-- tree --> and <!-- /tree --> once, but they were found {replaced}x.")
    readme.write_text(text)


# ---- the tree of the README ----


def readme_tree() -> str:
    """A fenced block: every folder and file of the packages, with the first sentence of its docstring."""
    rows = [row for package in PACKAGES for row in _rows(ROOT / package, depth=0)]
    width = max(len(name) for name, _ in rows) + 2
    return "```text\n" + "".join(f"{name:{width}}{meaning}\n" for name, meaning in rows) + "```\n"


def _rows(folder: Path, depth: int) -> Iterator[tuple[str, str]]:
    yield "  " * depth + f"{folder.name}/", _meaning(folder / "__init__.py")
    for file in sorted(folder.glob("*.py")):
        if file.name != "__init__.py":
            yield "  " * (depth + 1) + file.name, _meaning(file)
    for below in sorted(folder.iterdir()):
        if (below / "__init__.py").exists():
            yield from _rows(below, depth + 1)


def _meaning(file: Path) -> str:
    """The first sentence of the module's docstring, without its full stop, what is in brackets and what is too long."""
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert docstring, f"{file} has no docstring"
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"\.(?=\s+[A-Z`]|$)", paragraph)[0]
    sentence = re.sub(r" \([^()]*\)", "", sentence)
    if len(sentence) > LONGEST_MEANING:
        ends = [m.start() for m in re.finditer(r"[:;,]\s", sentence) if m.start() <= LONGEST_MEANING]
        sentence = sentence[: ends[-1]] if ends else sentence
    return sentence


# ---- docs/hyperparameters.md ----


def hyperparameters_page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_hyperparameter_tables(), _presets(), _data_sets()])


_HEAD = """\
# Hyperparameters

This page is written by `make docs` from the declarations in `trainer/hyperparameters.py` and `trainer/model_config.py`, the
presets in `trainer/presets.py` and the data sets in `trainer/named_data.py`. Change those, not this page.

A hyperparameter is set by its full name, on the command line or under `space:` in a sweep file. For a sweep a list chooses
among its values, `{low: 0.001, high: 0.1, log: true}` is a range, and a single value fixes.

```console
convsweep train --data digits --set model.kernel_size=5 --set optimizer.learning_rate=0.002
convsweep sweep --data digits --set "model.kernel_size=[3, 5]" --set "optimizer.learning_rate={low: 0.001, high: 0.01}"
```

Values that are marked *per block* have one entry for each block of the network: `model.kernel_size` is a value for every block
or a list with one value per block, `model.kernel_size.1` the first block's alone. In a sweep each block is searched on its own,
and a list is always a list of values to choose among.

*Searched by default* is what a sweep tries when nothing is said about the hyperparameter; a dash means that it stays at its
default. `training.epochs` and `training.seed` are `--epochs` and `--seed` on the command line, `epochs` and `seed` in a sweep
file. A hyperparameter with a condition has an effect, and is searched and shown, only where the condition holds.
"""


def _hyperparameter_tables() -> Iterator[str]:
    domains = Space({}, fixed={}).domains  # also those of the families that are not searched by default
    searched = {name: d for name, d in domains.items() if not (isinstance(d, Choice) and len(d.values) == 1)}
    for section, config in get_type_hints(TrialConfig).items():
        rows = [
            (
                f"`{p.name}`" + (", per block" if p.per_block else ""),
                _allowed(p),
                _code(p.default),
                _searched(searched.get(f"{p.name}.1" if p.per_block else p.name)),
                f"`{p.condition.name}` is {_condition(p.condition)}" if p.condition else "",
                p.doc,
            )
            for p in parameters()
            if p.section == section
        ]
        header = ("name", "allowed", "default", "searched by default", "condition", "meaning")
        networks = f"torchvision's networks are {_codes(NETWORKS)}.\n" if section == "model" else ""
        yield f"## {section}\n\n{inspect.getdoc(config)}\n\n{_table(header, rows)}" + (networks and f"\n{networks}")


def _allowed(p: Parameter) -> str:
    if p.name == "model.family":
        own = [value for value in p.domain.values if value not in FAMILIES]
        return f"{_codes([*own, f'{PREFIX}NAME'])} with a NAME from below"
    if isinstance(p.domain, OneOf):
        return _codes(p.domain.values)
    assert isinstance(p.domain, Between)
    kind = "whole number" if p.type is int else "number"
    step = f", in steps of {p.domain.step}" if (p.domain.step or 1) > 1 else ""
    return f"{kind}, {_number(p.domain.low)} to {_number(p.domain.high)}{step}"


def _searched(domain: Choice | Range | Ranges | None) -> str:
    if domain is None:
        return "–"
    if isinstance(domain, Choice):
        return _codes(domain.values)
    if isinstance(domain, Range):
        return _range(domain)
    return f"by `{domain.name}`: " + "; ".join(f"`{value}` {_range(r)}" for value, r in domain.by_value.items())


def _range(domain: Range) -> str:
    return f"{_number(domain.low)} to {_number(domain.high)}" + (", logarithmic" if domain.log else "")


def _presets() -> str:
    assert trainer.presets.__doc__
    flat = {name: _by_parameter(flatten(config)) for name, config in PRESETS.items()}
    rows = []
    for p in parameters():
        values = [_code(flat[name][p.name]) if p.name in flat[name] else "–" for name in PRESETS]
        if set(values) - {"–", _code(p.default)}:
            rows.append((f"`{p.name}`", *values))
    header = ("", *(f"`{name}`" for name in PRESETS))
    return (
        f"## Presets\n\n{trainer.presets.__doc__.strip()}\n\n"
        "`--preset NAME` starts from one. The table has the hyperparameters that are not at their default in all of them; a dash: "
        f"without effect there.\n\n{_table(header, rows)}"
    )


def _by_parameter(flat: dict[str, Value]) -> dict[str, Value | tuple[Value, ...]]:
    """A flat configuration with the values of the blocks gathered under one name."""
    gathered: dict[str, Value | tuple[Value, ...]] = {}
    for p in parameters():
        if p.per_block:
            if f"{p.name}.1" in flat:
                gathered[p.name] = tuple(v for name, v in flat.items() if name.rpartition(".")[0] == p.name)
        elif p.name in flat:
            gathered[p.name] = flat[p.name]
    return gathered


def _data_sets() -> str:
    rows = [
        (
            f"`{name}`",
            data.summary,
            f"`{data.path}`" if data.path else "–",
            f"`{data.preset}`",
            f"`{data.recipe}`" if data.recipe else "–",
            "yes" if data.mirrored else "no",
        )
        for name, data in NAMES.items()
    ]
    header = (
        "`--data`",
        "what it is",
        "its files under `--data-root`",
        "preset of the first trial",
        "recipe",
        "mirroring searched",
    )
    return (
        "## Data sets\n\n"
        "*Recipe*: the preset that is known to be good there. A sweep without `--preset` tries it too and searches the space around it "
        f"unless `space:` says otherwise:\n\n{_table(('hyperparameter', *(f'`{name}`' for name in RECIPES)), _recipe_rows())}\n"
        "*Mirroring searched*: whether a sweep tries `augmentation.flip` without being told to; a mirrored 2 is no 2. For a folder of "
        f"images it does, and the first trial has the preset `default`.\n\n{_table(header, rows)}"
    )


def _recipe_rows() -> Iterator[tuple[str, ...]]:
    names = dict.fromkeys(name for space in RECIPES.values() for name in space)
    for name in names:
        yield (f"`{name}`", *(_choices(space.get(name)) for space in RECIPES.values()))


def _choices(narrowing: Any) -> str:
    if narrowing is None:
        return "–"
    if isinstance(narrowing, dict):
        return f"{_number(narrowing['low'])} to {_number(narrowing['high'])}" + (
            ", log" if narrowing.get("log") else ""
        )
    return _codes(narrowing if isinstance(narrowing, list) else [narrowing])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _codes(values: Iterable[Value]) -> str:
    return ", ".join(_code(value) for value in values)


def _condition(condition: When) -> str:
    return f"`{condition.words}`" if condition.words else " or ".join(_code(value) for value in condition.values)


def _code(value: Value | tuple[Value, ...]) -> str:
    """A value as it is written in YAML."""
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


if __name__ == "__main__":
    main()
