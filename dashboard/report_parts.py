"""The report's sections on what the sweep was and what came out: facts, confirmed configurations, costs, ranking. Pure functions.

What is of use only where the sweep was run (paths, hosts, tracebacks) is left out: the report is sent to others.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import yaml
from markupsafe import Markup

from cluster.confirmed import compare_confirmed
from cluster.record import SweepRecord
from dashboard import captions, charts, confirmed_table, pareto, report_tables, sweep_facts, tables
from dashboard.parts import counted
from dashboard.report_blocks import cards, figure, joined, moment, note, pair, quiet, said
from dashboard.report_tables import Cell
from dashboard.tables import Column

MOST_TRIALS = 500
MOST_CLASSES = 50
MOST_FAILURES = 50
MOST_POINTS = 500
_CHANNELS = {1: "gray", 3: "RGB"}
_FAILURES = (
    Column("trials", "trials", "Which could not go on"),
    Column("error", "error", "The first line of what was recorded"),
)


def head(sweep: SweepRecord, at: datetime) -> Markup:
    """The title, what the sweep was told to do, and its headline numbers; `at` is when the record was read."""
    parts = [
        Markup('<h1>{} <span class="badge {}">{}</span></h1>\n').format(sweep.name, sweep.state, sweep.state),
        quiet(f"A sweep of convsweep: {' · '.join(sweep_facts.settings(sweep))}."),
        quiet(f"This report is of {moment(at)}."),
    ]
    if sweep.is_live:
        ended = len(sweep.trials) - sweep.counts["RUNNING"] - sweep.counts["WAITING"]
        parts.append(
            said(f"The sweep was running then, and {counted(ended, 'trial')} had ended: all of this is of that moment.")
        )
    parts.append(cards(sweep_facts.headline(sweep)))
    if sweep.baseline:
        parts.append(quiet(sweep_facts.baseline_in_words(sweep, sweep.baseline)))
    return joined(parts)


def facts(sweep: SweepRecord) -> Markup:
    """Its data, when it ran and how long, what it spent, why it ended, and the notes on it."""
    rows: list[tuple[str, str | Markup]] = [("Data", sweep.config.data.name), ("Classes", _classes(sweep.classes))]
    if sweep.image_shape is not None:
        channels, height, width = sweep.image_shape
        rows.append(("Images", f"{width}×{height}, {_CHANNELS.get(channels, f'{channels} channels')}"))
    if sweep.runs:
        begun = moment(datetime.fromtimestamp(sweep.runs[0]["begun"], UTC))
        runs = f" in {len(sweep.runs)} runs" if len(sweep.runs) > 1 else ""
        groups = f"{counted(sweep.timing.groups, 'worker group')} of {counted(sweep.config.shape.workers, 'rank')}"
        rows += [("Begun", begun), ("Ran for", tables.duration(sweep.timing.wall_seconds) + runs), ("Ran on", groups)]
        rows.append(("Spent", _spent(sweep)))
    rows.append(("Trials", tables.counts(sweep)[1] or "none"))
    rows.append(("State", sweep.state + (f": {sweep.ending.reason}" if sweep.ending else "")))
    if sweep.config.space:
        space = yaml.safe_dump(_as_yaml(sweep.config.space), sort_keys=False, allow_unicode=True, width=100)
        rows.append(("Space", Markup("<pre>{}</pre>").format(space.strip())))
    listed = joined(Markup("<dt>{}</dt><dd>{}</dd>\n").format(*row) for row in rows)
    return Markup('<dl class="facts">\n{}</dl>\n{}').format(listed, _notes(sweep))


def confirmed(sweep: SweepRecord) -> Markup | None:
    """What several seeds of the best configurations gave on the test split; None where nothing was confirmed."""
    comparison = compare_confirmed(sweep)
    if comparison.recommended is None:
        return None
    caption = "The confirmed configurations, best mean first"
    table = report_tables.of_frame(confirmed_table.table(comparison), confirmed_table.columns(comparison), caption)
    chart, alt_text = confirmed_table.intervals(comparison), confirmed_table.alt_text(comparison)
    return table + figure("confirmed", "", chart, alt_text, comparison.in_words())


def against_cost(sweep: SweepRecord, table: pd.DataFrame) -> Markup | None:
    """The metric of the complete trials of the ranking `table` against each cost among the goals, or against parameters.

    None where there is nothing to draw.
    """
    goal, figures = sweep.config.goal, []
    for cost in [name for name in sweep.config.goals if name in pareto.offered(table)] or ["parameters"]:
        points = pareto.points(table, cost, pareto.front(table, cost, goal), at_most=MOST_POINTS, goal=goal)
        if points.empty:
            continue
        bounds, known = pareto.bounds(sweep, cost), pareto.COSTS[cost]
        chart = charts.value_against_cost(points, known, goal=goal, limits=bounds)
        alt_text = f"Validation {goal.label} of the complete trials against their {known.label}, and the Pareto front"
        caption = captions.front(bool(bounds), len(points), pareto.complete_count(table, cost))
        figures.append(figure(f"cost-{cost}", f"{goal.title} against {known.label}", chart, alt_text, caption))
    return pair(figures) if figures else None


def ranking(sweep: SweepRecord, table: pd.DataFrame) -> Markup:
    """The trials, best first, and which failed for what; `table` is their `tables.ranking`."""
    if not sweep.trials:
        return Markup("<p>The sweep has no trials yet.</p>\n")
    shown = sweep.trials[:MOST_TRIALS]
    which = (
        "All trials" if len(shown) == len(sweep.trials) else f"The first {len(shown):,} of {len(sweep.trials):,} trials"
    )
    text = (
        f"{which}: complete ones by value, then pruned ones by value, then the others. Hyperparameters that are the same in all trials "
        "have no column."
    )
    if len(shown) < len(sweep.trials):
        text += f" convsweep rank {sweep.name} --top {len(sweep.trials)} has all of them."
    front = sweep.front if sweep.config.goals else pareto.front(table, "parameters", sweep.config.goal)
    rows = report_tables.ranking(sweep, table, len(shown), front)
    return quiet(text) + rows + _failures(sweep)


def _failures(sweep: SweepRecord) -> Markup:
    found = tables.failures(sweep.trials)
    if not found:
        return Markup("")
    rows = [
        [Cell(tables.trial_names(trials)), Cell(reason, is_long=True)]
        for reason, trials in list(found.items())[:MOST_FAILURES]
    ]
    more = (
        quiet(f"And {counted(len(found) - MOST_FAILURES, 'other error')}.")
        if len(found) > MOST_FAILURES
        else Markup("")
    )
    table = report_tables.table(_FAILURES, rows, "Why trials failed")
    return Markup("<h3>Failed trials</h3>\n{}{}").format(table, more)


def _classes(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_CLASSES:,} more" if len(names) > MOST_CLASSES else ""
    return f"{len(names):,}: {', '.join(names[:MOST_CLASSES])}{more}" if names else "not recorded"


def _spent(sweep: SweepRecord) -> str:
    """What is counted, with the limits that there were."""
    spent = sweep.spent_to_json()
    units = {"gpu_hours": "{:.2f} GPU-hours", "node_hours": "{:.2f} node-hours", "cost": "{:.2f} for nodes"}
    counts = [f"{tables.duration(sweep.timing.train_seconds)} of training over all groups"]
    counts += [unit.format(spent[name]) for name, unit in units.items() if spent[name]]
    limits = [f"limit: {limit}" for limit in sweep.config.budget.limits(sweep.spent)]
    return "; ".join((", ".join(counts), *limits))


def _notes(sweep: SweepRecord) -> Markup:
    """Those on the sweep and on its trials."""
    texts = sorted(((-1 if number is None else number), text) for number, text in sweep.notes.items() if text.strip())
    if not texts:
        return Markup("")
    listed = (
        Markup("<p><strong>{}</strong></p>\n{}").format(tables.trial_name(number).capitalize(), note(text))
        if number >= 0
        else note(text)
        for number, text in texts
    )
    return Markup("<h3>Notes</h3>\n") + joined(listed)


def _as_yaml(value: Any) -> Any:
    """The value with plain lists and mappings, which is what YAML knows."""
    if isinstance(value, dict):
        return {key: _as_yaml(inner) for key, inner in value.items()}
    return [_as_yaml(inner) for inner in value] if isinstance(value, list | tuple) else value
