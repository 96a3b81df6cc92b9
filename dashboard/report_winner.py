"""The report's section on the winner: what its configuration is, how good, how sure that is, and how to have it again."""

from __future__ import annotations

from markupsafe import Markup

from cluster.preference import Preference, preference
from cluster.record import SweepRecord, TrialRecord
from dashboard import network_chart, report_tables, trial_charts, trial_tables
from dashboard.parts import counted
from dashboard.report_blocks import cards, figure, joined, pair, quiet, said
from dashboard.report_tables import Cell
from dashboard.sweep_facts import Number
from dashboard.tables import Column
from trainer.fold_scores import with_margin
from trainer.gradients import troubles
from trainer.hyperparameters import in_short, unflatten
from trainer.layers import describe_layers

CURVE_HEIGHT = 230
_CAVEAT = (
    "The validation split has chosen epoch, trial and configuration, so its value is a little too good. The test split, which the search "
    "never sees, judges the bundle that convsweep export writes and the models that convsweep confirm trains."
)
_COLUMNS = (
    Column("section", "section", "The part of the configuration"),
    Column("hyperparameter", "hyperparameter", "What was chosen"),
    Column("value", "value", "The winner's; bold where it is not the default"),
    Column("default", "default", "What it is when nothing is said"),
    Column("meaning", "meaning", "What it does"),
)


def winner(sweep: SweepRecord) -> Markup:
    """The section; of a confirmed sweep the winner is what `convsweep export` takes, otherwise the best trial."""
    preferred = preference(sweep)
    trial = sweep.best if preferred is None else sweep.trial(preferred.choice.trial)
    if trial is None:
        keeps = " and keeps to the constraints" if sweep.config.constraints else ""
        return Markup("<p>There is none: no trial of the sweep has run to its end{}.</p>\n").format(keeps)
    facts = trial_tables.headline(sweep, trial)
    numbers = [_number(trial, fact) for fact in facts if fact.value != trial_tables.NOTHING]
    preset = f", the preset {trial.preset}" if trial.preset else ""
    parts = [
        Markup("<p><strong>Trial {}</strong>{}: {}</p>\n").format(trial.number, preset, in_short(trial.config)),
        cards(numbers if preferred is None else [_tested(preferred), *numbers]),
        quiet(_CAVEAT) if preferred is None else said(preferred.reason),
        *(said(trouble.text) for trouble in troubles(trial.gradients)),
        _network(sweep, trial),
        _curves(sweep, trial),
        _configuration(trial),
        _commands(sweep, trial),
    ]
    return joined(parts)


def _number(trial: TrialRecord, fact: trial_tables.Fact) -> Number:
    """A headline number as a card; that of several folds with its interval."""
    value = fact.value
    if trial.fold_values and trial.value is not None and value == f"{trial.value:.4f}":
        value = with_margin(trial.value, trial.fold_values)
    return Number(fact.label, value, fact.help, "")


def _tested(preferred: Preference) -> Number:
    figures = preferred.figures
    spread = "95 % interval {:.4f} to {:.4f}".format(*figures.interval) if figures.interval else "one says little"
    below = f"On the test split, the mean of {counted(figures.n, 'seed')}; {spread}"
    return Number(f"Test {figures.metric.replace('_', ' ')}", f"{figures.mean:.4f}", below, "")


def _network(sweep: SweepRecord, trial: TrialRecord) -> Markup:
    """The drawing, once for a light page and once for a dark one, or why there is none."""
    heading = Markup("<h3>Its network</h3>\n")
    try:
        layers = describe_layers(*trial_tables.network(sweep, trial))
    except ValueError as error:
        return heading + quiet(str(error))
    drawings = joined(
        Markup('<div class="{}">{}</div>').format(ink, Markup(network_chart.draw(layers, dark=ink == "dark")))
        for ink in ("light", "dark")
    )
    alt_text = f"The network of trial {trial.number}, from its input to its classes"
    return heading + Markup('<figure><div class="drawing" role="img" aria-label="{}">{}</div></figure>\n').format(
        alt_text, drawings
    )


def _curves(sweep: SweepRecord, trial: TrialRecord) -> Markup:
    epochs, goal = trial_tables.epochs(trial), sweep.config.goal
    if epochs.empty:
        return Markup("")
    draw = trial_charts.fold_curves if epochs["fold"].any() else trial_charts.curves
    losses = {"train_loss": "training", "val_loss": "validation"}
    shown = {"loss per image": losses, f"validation {goal.label}": {goal.field: f"validation {goal.label}"}}
    figures = [
        figure(
            f"winner-{place}",
            f"{title[0].upper()}{title[1:]}",
            draw(epochs, metrics, title, CURVE_HEIGHT),
            f"{title} by epoch",
        )
        for place, (title, metrics) in enumerate(shown.items())
        if place == 0 or goal.field not in losses
    ]
    folds = quiet("A colour for each fold; the training loss is dashed.") if epochs["fold"].any() else Markup("")
    return pair(figures) + folds


def _configuration(trial: TrialRecord) -> Markup:
    """Each hyperparameter with its meaning; bold what is not the default."""
    rows = []
    for row in trial_tables.configuration(trial).to_dict("records"):
        value = Markup("<strong>{}</strong>").format(row["value"]) if row["differs"] else row["value"]
        texts = (row["section"], row["hyperparameter"], value, row["default"])
        rows.append([*map(Cell, texts), Cell(row["meaning"], is_long=True)])
    caption = f"The hyperparameters of trial {trial.number}"
    return Markup("<h3>Its configuration</h3>\n") + report_tables.table(_COLUMNS, rows, caption)


def _commands(sweep: SweepRecord, trial: TrialRecord) -> Markup:
    """The commands that train it again and that export its model."""
    from cluster.export import training_command  # with PyTorch

    try:
        command = training_command(unflatten(trial.config), sweep.config.data, sweep.config.metric)
    except ValueError as error:
        command = f"# {error}"
    return Markup(
        "<h3>To have it again</h3>\n<p>Train this configuration again:</p>\n<pre>{}</pre>\n"
        "<p>Export its model, where the sweep was run:</p>\n<pre>convsweep export {}</pre>\n"
    ).format(command, sweep.name)
