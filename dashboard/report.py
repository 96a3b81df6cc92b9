"""A sweep as one HTML file that needs a browser and no network. `python -m dashboard.report` is what `convsweep report` starts."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from cluster import exit_status
from cluster.experiments import Experiments
from cluster.record import SweepRecord
from dashboard import records, report_charts, report_page, report_parts, report_search, settings, tables
from dashboard.optuna_charts import Importances
from dashboard.report_winner import winner


def make_report(sweep: SweepRecord, importances: Importances | str, at: datetime) -> str:
    """The file's text. `importances` are those of its trials, or why there are none; the record was read `at` that time."""
    table = tables.ranking(sweep.trials, sweep.config.goal)
    sections: dict[str, Markup | None] = {
        "The sweep": report_parts.facts(sweep),
        "The winner": winner(sweep) if sweep.trials else None,
        "Confirmed on the test split": report_parts.confirmed(sweep),
        "Ranking": report_parts.ranking(sweep, table),
        f"{sweep.config.goal.title} against cost": report_parts.against_cost(sweep, table),
        "Learning curves": report_search.curves(sweep),
        "Best so far": report_search.progress(sweep),
        "Importances": report_search.importances(sweep, importances) if sweep.trials else None,
        "Worker groups": report_search.timeline(sweep),
    }
    there = [(title, content) for title, content in sections.items() if content is not None]
    title = f"{sweep.name}: a sweep of convsweep"
    return report_page.page(title, report_parts.head(sweep, at), there, report_charts.vega())


def report_of(experiments: Experiments, sweep: SweepRecord) -> str:
    """The report of a sweep, with what else the database says. Raises ValueError when that cannot be read."""
    importances: Importances | str
    try:
        importances = records.importances(experiments, sweep)
    except ValueError as error:
        importances = str(error)
    return make_report(sweep, importances, datetime.now(UTC))


def write_report(text: str, file: Path) -> None:
    """Write it, in place of a report that is there. Raises ValueError where something else is, OSError when it cannot be written."""
    check_target(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as out:
            out.write(text)
        os.chmod(temporary, 0o644)  # noqa: PTH101 -- to be sent to others, and not for the writer alone as such files are
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_target(file: Path) -> None:
    """Raise ValueError unless a report may be written there: nothing is there, or a report."""
    if file.is_dir():
        raise ValueError(f"{str(file)!r} is a folder: name a file with --to.")
    if file.exists() and not is_report(file):
        raise ValueError(f"{str(file)!r} exists and is no report of convsweep: choose another file with --to.")


def is_report(file: Path) -> bool:
    """Whether the file says that it is one of ours."""
    with file.open("rb") as content:
        return report_page.GENERATOR_TAG.encode() in content.read(400)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of the sweep that is named, of the experiments that the environment names, and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m dashboard.report", description="Write a sweep as one HTML file.")
    parser.add_argument("name", help="the sweep")
    parser.add_argument("--to", type=Path, help="the file (default: NAME.html)")
    parser.add_argument("--json", action="store_true", help="say as JSON what was written")
    given = parser.parse_args(arguments)
    with exit_status.told():
        experiments = settings.from_environment(os.environ)
        file = given.to or Path(f"{given.name}.html")
        check_target(file)  # before the work
        sweep = records.read_sweep(experiments, given.name)
        write_report(report_of(experiments, sweep), file)
        size = file.stat().st_size
        trials = len(sweep.trials)
        if given.json:
            facts = {"sweep": sweep.name, "state": sweep.state, "trials": trials, "report": str(file), "bytes": size}
            sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        else:
            sys.stdout.write(
                f"{file}: sweep {sweep.name}, {sweep.state}, {tables.counts(sweep)[1] or 'no trials'}; {size / 1e6:.1f} MB. "
                "Any browser opens it, also without a network.\n"
            )


if __name__ == "__main__":
    main()
