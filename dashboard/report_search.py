"""The report's sections on how the search went: curves, the best so far, fates, importances, the groups' time. Pure functions."""

from __future__ import annotations

import itertools

from markupsafe import Markup

from cluster.record import SweepRecord
from dashboard import captions, charts, report_tables, search_charts, search_tables, tables
from dashboard.optuna_charts import Importances
from dashboard.report_blocks import figure, joined, pair, quiet
from dashboard.search_tables import Over

MOST_POINTS = 500
MOST_EPOCHS = 3000
"""So many points of curves are drawn, and with them so many trials as have them, but no fewer than `FEWEST_CURVES`."""
FEWEST_CURVES = 20
MOST_BARS = 500
BEST_CURVES = 5
_OVER: dict[Over, str] = {"trials": "over the trials", "time": "over time"}


def curves(sweep: SweepRecord) -> Markup | None:
    """The learning curves, those of the best trials apart; None where no epoch has ended."""
    goal, trained = sweep.config.goal, [t for t in sweep.trials if t.epochs_done]
    if not trained:
        return None
    best = tables.learning_curves(itertools.islice(trained, BEST_CURVES), goal)
    longest = max(t.epochs_done for t in trained)
    every = search_tables.metric_curves(sweep.trials, goal, max(FEWEST_CURVES, MOST_EPOCHS // longest))
    fates = search_tables.fates(sweep.trials)
    label = f"Validation {goal.label}"
    return pair(
        (
            figure(
                "best-values",
                f"{goal.title} of the best trials",
                charts.metric_by_epoch(best, goal, legend_columns=3),
                f"{label} of the best trials after each epoch",
            ),
            figure(
                "best-losses",
                "Losses of the best trials",
                charts.losses_by_epoch(best, legend_columns=3),
                "Training and validation loss of the best trials after each epoch",
                "Validation solid with dots, training dashed with triangles.",
            ),
            figure(
                "every-value",
                f"{goal.title} by epoch",
                search_charts.metric_curves(every, goal),
                f"{label} of each trial by epoch",
                captions.curves(every, sweep.trials, goal),
            ),
            figure(
                "fates",
                "What ended when",
                search_charts.fates(fates),
                "Trials that got to each epoch, by what became of them",
                captions.FATES,
            ),
        )
    )


def progress(sweep: SweepRecord) -> Markup | None:
    """The best so far, over the trials and over time; None where no trial has a value."""
    goal, figures = sweep.config.goal, []
    for over, words in _OVER.items():
        found = search_tables.progress(sweep, over)
        if found.empty:
            continue
        shown = search_tables.thinned(found, MOST_POINTS)
        chart = search_charts.best_so_far(shown, over, goal)
        alt_text = f"Validation {goal.label} of each trial and the best so far, {words}"
        caption = captions.best_so_far(goal, len(shown), len(found))
        figures.append(figure(f"progress-{over}", words.capitalize(), chart, alt_text, caption))
    return pair(figures) if figures else None


def importances(sweep: SweepRecord, found: Importances | str) -> Markup:
    """Which hyperparameters decided; in place of the importances there may be the sentence that says why there are none."""
    if isinstance(found, str):
        return quiet(found)
    said = joined(map(quiet, captions.importances(found, sweep)))
    chart = search_charts.importances(found.values)
    return said + figure("importances", "", chart, "The importance of each hyperparameter")


def timeline(sweep: SweepRecord) -> Markup | None:
    """When each worker group trained which trial, and how busy it was; None where no group has begun one."""
    bars = search_tables.timeline(sweep.trials, MOST_BARS)
    if bars.empty:
        return None
    chart = search_charts.timeline(bars, sweep.config.goal)
    alt_text = "When each worker group trained which trial"
    work = report_tables.of_frame(
        search_tables.group_work(sweep.trials), search_tables.GROUP_WORK, "How busy each worker group was"
    )
    return figure("timeline", "", chart, alt_text, captions.timeline(bars, sweep.trials)) + work
