"""Who may know whom, how files are called and how long they are: `python -m pytest tests/test_architecture.py`.

`lint-imports` checks the layers from the import statements; here is what only a walk through the syntax or a fresh process shows.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import cli

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("trainer", "cluster", "dashboard")
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc", "manager"}
MOST_LINES = 400


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(*names: str) -> list[Path]:
    """The files of these modules and of everything below them."""
    found = [f for f in FILES if any(name_of(f) == name or name_of(f).startswith(f"{name}.") for name in names)]
    assert found
    return found


def known_to(tree: ast.AST) -> Iterator[str]:
    """Every module that a file names: in imports, also inside functions and `if TYPE_CHECKING`, and as `ray.tune`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def among(module: str, forbidden: str) -> bool:
    return module == forbidden or module.startswith(f"{forbidden}.")


def breaches(files: list[Path], forbidden: tuple[str, ...]) -> set[str]:
    return {
        f"{name_of(file)} knows {name}"
        for file in files
        for module in known_to(ast.parse(file.read_text()))
        for name in forbidden
        if among(module, name)
    }


def test_a_trial_knows_no_tune_no_study_and_no_dashboard() -> None:
    assert breaches(modules_of("trainer"), ("ray.tune", "optuna", "streamlit", "cluster", "dashboard")) == set()


def test_what_is_forbidden_is_found_wherever_it_stands() -> None:
    def found(code: str) -> bool:
        return any(among(module, "ray.tune") for module in known_to(ast.parse(code)))

    assert found("def f():\n    from ray import tune")
    assert found("if TYPE_CHECKING:\n    from ray.tune.experiment import Trial")
    assert found("import ray\nray.tune.run()")
    assert not found("import ray.train\nfrom ray import tuner")


READ_WITHOUT_RAY = ("dashboard", "cluster.study", "cluster.config", "cluster.space", "cluster.experiments")


def test_the_record_and_the_dashboard_name_no_ray() -> None:
    assert breaches(modules_of(*READ_WITHOUT_RAY), ("ray",)) == set()


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        pytest.param(
            tuple(sorted({f"cluster.{module}" for module in cli._PLACES.values()})),
            ("torch", "ray", "torchvision", "sklearn", "pandas"),
            id="--help is quick",
        ),
        pytest.param(
            ("cluster.cli", "cluster.predict_command"), ("optuna", "sqlalchemy", "pyarrow"), id="predict starts"
        ),
        pytest.param(
            tuple(name_of(f) for f in modules_of(*READ_WITHOUT_RAY) if f.name != "__main__.py"),
            ("ray", "torch"),
            id="the record is read without Ray",
        ),
        pytest.param(
            ("trainer.predicting", "trainer.sources"),
            ("torch", "ray", "pandas", "optuna"),
            id="images are classified without torch",
        ),
        pytest.param(("cluster.distributed_predict",), ("ray",), id="Ray is imported when it is connected to"),
        pytest.param(("trainer.mailbox", "trainer.metrics"), ("torch",), id="a group is watched without torch"),
    ],
)
def test_an_import_leaves_out_what_is_slow(modules: tuple[str, ...], absent: tuple[str, ...]) -> None:
    code = f"import sys, {', '.join(modules)}\nprint(*(name for name in {absent} if name in sys.modules))"
    imported = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert imported.stdout.split() == []


def test_no_file_is_a_drawer() -> None:
    everywhere = [*FILES, *(f for folder in ("tests", "bench") for f in (ROOT / folder).rglob("*.py"))]
    assert [str(f.relative_to(ROOT)) for f in everywhere if f.stem in DRAWERS or f.parent.name in DRAWERS] == []


def test_no_file_is_long() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}
