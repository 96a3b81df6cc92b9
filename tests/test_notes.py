"""Notes lie where optuna-dashboard keeps them, and load nothing. `python -m pytest tests/test_notes.py -q`."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna_dashboard import get_note, save_note
from optuna_dashboard._note import SYSTEM_ATTR_MAX_LENGTH, get_note_from_system_attrs

from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.notes import MAX_LENGTH, noted_trials, read_note, write_note
from cluster.record import SweepRecord
from cluster.studies import Studies
from dashboard.notes import without_pictures

PIECE = SYSTEM_ATTR_MAX_LENGTH
LONG = "".join(f"{i:07d}\n" for i in range(2000))
TEXTS = ["", "**bold**", "x" * PIECE, "x" * (PIECE + 1), "ä😀" * PIECE, LONG]


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study()


def written(study: optuna.Study, trial_id: int | None) -> str:
    return read_note(study._storage.get_study_system_attrs(study._study_id), trial_id)


# ---- the storage ----


@pytest.mark.parametrize("text", TEXTS)
def test_optuna_dashboard_reads_what_is_written_here(study: optuna.Study, text: str) -> None:
    trial = study.ask()
    write_note(study, None, f"study {text}")
    write_note(study, trial._trial_id, text)
    assert get_note(study) == f"study {text}"
    assert get_note(trial) == text


@pytest.mark.parametrize("text", TEXTS)
def test_what_optuna_dashboard_writes_is_read_here(study: optuna.Study, text: str) -> None:
    trial = study.ask()
    save_note(study, f"study {text}")
    save_note(trial, text)
    assert written(study, None) == f"study {text}"
    assert written(study, trial._trial_id) == text


@pytest.mark.parametrize("first", [write_note, None], ids=["written here", "written by optuna-dashboard"])
def test_a_note_that_shrinks_leaves_nothing_of_the_one_before(study: optuna.Study, first: object) -> None:
    trial = study.ask()
    if first is None:
        save_note(trial, LONG)
    else:
        write_note(study, trial._trial_id, LONG)
    write_note(study, trial._trial_id, "short")
    assert written(study, trial._trial_id) == "short"
    assert get_note(trial) == "short"


def test_optuna_dashboard_shrinks_a_note_that_was_written_here(study: optuna.Study) -> None:
    write_note(study, None, LONG)
    save_note(study, "short")
    assert written(study, None) == "short"


def test_an_emptied_note_is_empty_for_both(study: optuna.Study) -> None:
    write_note(study, None, LONG)
    write_note(study, None, "")
    assert written(study, None) == ""
    assert get_note(study) == ""


def test_a_note_that_was_never_written_is_empty(study: optuna.Study) -> None:
    assert written(study, None) == ""
    assert noted_trials(study._storage.get_study_system_attrs(study._study_id)) == []


def test_each_writing_raises_the_version_that_optuna_dashboard_checks(study: optuna.Study) -> None:
    save_note(study, "one")
    write_note(study, None, "two")
    write_note(study, None, "three")
    attributes = study._storage.get_study_system_attrs(study._study_id)
    assert get_note_from_system_attrs(attributes, None) == {"version": 3, "body": "three"}


def test_the_notes_on_study_and_trials_are_apart(study: optuna.Study) -> None:
    trials = [study.ask() for _ in range(12)]  # the ids 1 and 11 begin alike
    for trial in trials:
        write_note(study, trial._trial_id, f"on trial {trial.number}")
    write_note(study, None, "on the study")
    assert [written(study, t._trial_id) for t in trials] == [f"on trial {t.number}" for t in trials]
    assert written(study, None) == "on the study"
    attributes = study._storage.get_study_system_attrs(study._study_id)
    assert sorted(noted_trials(attributes)) == [t._trial_id for t in trials]


def test_too_long_a_note_changes_nothing(study: optuna.Study) -> None:
    write_note(study, None, "before")
    write_note(study, 0, "x" * MAX_LENGTH)
    with pytest.raises(ValueError, match=r"at most 20,000 characters, but this one has 20,001"):
        write_note(study, None, "x" * (MAX_LENGTH + 1))
    assert written(study, None) == "before"


def test_the_record_has_the_notes_by_the_trials_number(tmp_path: Path) -> None:
    studies = Studies(Experiments(tmp_path), create=True)
    optuna.create_study(study_name="other", storage=studies._storage).ask()  # so that ids and numbers differ
    config = make_config({"name": "noted", "data": "digits", "trials": 2, "preset": "none"})
    sweep = studies.create(config, ["zero", "one"])
    sweep.begin_run(config, groups=1)
    for _ in range(2):
        sweep.ask()

    def read() -> SweepRecord:
        return studies.read("noted")

    assert read().notes == {}
    before = read().stamp
    sweep.write_note("about the sweep")
    sweep.write_note("about the second trial", 1)
    assert read().notes == {None: "about the sweep", 1: "about the second trial"}
    assert read().stamp != before
    sweep.write_note("")
    assert read().notes == {1: "about the second trial"}
    with pytest.raises(ValueError, match="no trial 7"):
        sweep.write_note("about nothing", 7)


# ---- what a page shows of them ----


@pytest.mark.parametrize(
    "text",
    [
        "![x](https://example.org/x.png)",
        r"\![x](https://example.org/x.png)",
        "![x][1]\n\n[1]: https://example.org/x.png",
        "a![](https://example.org/x.png)![](https://example.org/y.png)",
    ],
)
def test_a_picture_becomes_a_link(text: str) -> None:
    shown = without_pictures(text)
    assert "![" not in shown
    assert shown.replace("\u200b", "") == text


@pytest.mark.parametrize(
    "fence",
    [
        "```mermaid",
        "~~~ mermaid `x`",
        "```` Mermaid",
        "> ```mermaid",
        "- ~~~mermaid",
        "```&#109;ermaid",
        "```\\mermaid",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_a_diagram_which_may_hold_pictures_is_plain_text(fence: str, end: str) -> None:
    shown = without_pictures(f'{fence}{end}flowchart TD{end}  A@{{ img: "https://example.org/x.png" }}{end}```')
    first = shown.split("\n")[0]
    assert first.endswith(("```text", "~~~text"))


@pytest.mark.parametrize(
    "text",
    [
        "# Title\n\n*text* with `code`, $x^2$ and a [link](https://example.org)!",
        "```python\nx[0] != y\n```",
        "~~~\nplain\n~~~",
        "Really! [No](https://example.org)",
        "mermaid",
    ],
)
def test_other_markdown_stays_as_it_is(text: str) -> None:
    assert without_pictures(text) == text


@given(st.text(alphabet="![]()`~\\ \n\rmermaid&#;:>-", max_size=60))
def test_nothing_that_loads_is_left(text: str) -> None:
    shown = without_pictures(text)
    assert "![" not in shown
    for line in shown.split("\n"):
        fence, marks, language = line.rpartition("```")
        assert not (marks and "mermaid" in language and "`" not in language), (fence, language)
