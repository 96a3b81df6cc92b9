"""What the pages say is so: `python -m pytest tests/test_documentation.py`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from derived_docs import ROOT, TREE, hyperparameters_page, readme_tree

from cluster.cli import build
from cluster.config import make_config, read_sweep_file
from tests import checkout

PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *(page for folder in ("docs", "examples") for page in sorted((ROOT / folder).rglob("*.md"))),
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(convsweep [^`]*)`")
COMMAND = re.compile(r"\bconvsweep ([a-z-][^`\n]*)")
QUOTED = re.compile(r"'(convsweep [^'\n]*)'")  # what another program is to run
LINK = re.compile(r"\]\(([^()\s]+)\)")
MADE = re.compile(r"\$\(BIN\)/convsweep ([^\"\n]*)")
ELSEWHERE = ("http://", "https://", "mailto:", "#")


def commands(file: Path) -> Iterator[str]:
    """Every `convsweep ...` that a page shows as code, or that the Makefile runs or prints, without the first word."""
    text = TREE.sub("", file.read_text())  # the tree is sentences, not commands
    if file.suffix != ".md":
        yield from MADE.findall(text)
        return
    code = [*(content for _, content in FENCED.findall(text)), *INLINE.findall(FENCED.sub("", text))]
    for block in code:
        yield from COMMAND.findall(QUOTED.sub(r"\1\n", block.replace("\\\n", " ")))


PROGRAM: Any = typer.main.get_command(build())  # of click, or of the copy of it in newer typers
SHOWN = [(file, command) for file in [*PAGES, ROOT / "Makefile"] for command in commands(file)]


def test_the_tree_in_the_readme_is_that_of_the_code() -> None:
    assert TREE.findall((ROOT / "README.md").read_text()) == [readme_tree()], "run `make docs`"


def test_the_page_of_hyperparameters_is_what_the_declarations_say() -> None:
    assert (ROOT / "docs/hyperparameters.md").read_text() == hyperparameters_page(), "run `make docs`"


@pytest.mark.parametrize(("file", "command"), SHOWN, ids=[f"{f.name}: {c}" for f, c in SHOWN])
def test_a_command_that_is_shown_can_be_run(file: Path, command: str) -> None:
    parse(command)


def test_every_command_is_shown_in_the_readme() -> None:
    shown = {command.split()[0] for file, command in SHOWN if file == ROOT / "README.md"}
    assert set(PROGRAM.commands) <= shown


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sweeep --data digits", "no command 'sweeep'"),
        ("rank demo --best", "[Nn]o such option.*--best"),
        ("extend demo --trials N", "valid int"),
        ("clean --keep 2", "Missing .*name"),
        ("resume a b", "unexpected extra argument"),
        ("--hepl", "no option '--hepl'"),
    ],
)
def test_a_command_that_cannot_be_run_is_noticed(command: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        parse(command)


def parse(command: str) -> None:
    """Read a command's words as the program does, without running it. A bare name is a mention: it has to exist."""
    name, *words = shlex.split(command, comments=True)
    if name.startswith("-"):
        assert name == "--help", f"there is no option {name!r}"
        return
    assert name in PROGRAM.commands, f"there is no command {name!r}"
    if words:
        PROGRAM.commands[name].make_context(name, words)


SWEEP_FILES = [content for file in PAGES for kind, content in FENCED.findall(file.read_text()) if kind == "yaml"]


def test_the_readme_shows_a_sweep_file() -> None:
    assert SWEEP_FILES


@pytest.mark.parametrize("content", SWEEP_FILES)
def test_a_sweep_file_that_is_shown_is_one(content: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(content)
    config = make_config(read_sweep_file(file) | {"name": "shown"})
    assert config.space == yaml.safe_load(content).get("space", {})


LINKS = [(file, link) for file in PAGES for link in LINK.findall(FENCED.sub("", file.read_text()))]


@pytest.mark.parametrize(("file", "link"), LINKS, ids=[f"{f.name}: {link}" for f, link in LINKS])
def test_a_link_leads_somewhere(file: Path, link: str) -> None:
    if not link.startswith(ELSEWHERE):
        assert (file.parent / link.partition("#")[0]).exists()


def test_nothing_but_the_script_of_ci_knows_what_lies_beside_the_repository() -> None:
    beside = ("../" + "shared", "/" + "work/")
    assert [
        f"{file.relative_to(ROOT)}: {word}" for file in text_files() for word in beside if word in file.read_text()
    ] == []


def text_files() -> Iterator[Path]:
    """Every file of the repository that is text, those that are not yet committed as well, but for the script of CI."""
    for name in checkout.files():
        file = ROOT / name
        if name != ".ci/run" and b"\0" not in file.read_bytes()[:8192]:
            yield file


def test_every_constraint_is_one_exact_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines
    assert [
        line for line in lines if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*", line)
    ] == []
