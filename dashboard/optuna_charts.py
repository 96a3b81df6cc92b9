"""Optuna's own pictures of a study (plotly), and its importances, made fit for a page. Pure functions on a study in memory.

Optuna draws the complete trials alone. It and plotly are slow to import, so they are imported where they are needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.record import SweepRecord, TrialRecord
from dashboard.search_tables import drawn

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go

MOST_TRIALS = 1000
ENOUGH_TRIALS = 50
"""From so many complete trials on, Optuna's importances rest on five good trials or more, as its documentation advises."""
_HEIGHT = 420


@dataclass(frozen=True)
class Plot:
    """A picture that Optuna draws: of at most `trials` trials and of `fewest` to `most` parameters, `preset` at first."""

    title: str
    draw: Callable[[optuna.Study, Sequence[str], str], go.Figure]
    about: str
    trials: int
    fewest: int
    most: int
    preset: int


@dataclass(frozen=True)
class Importances:
    """How much each parameter decides whether a trial is among the best tenth, as shares, the largest first.

    `rough` are those for which some case (a range, or not being there) has a single trial, which is left out.
    """

    values: Mapping[str, float]
    trials: int
    rough: tuple[str, ...] = ()


def compute_importances(study: optuna.Study) -> Importances:
    """Optuna's importances (PED-ANOVA, its default) of all parameters of the complete trials, also of conditional ones.

    Raises ValueError when there are too few trials, or trials too alike, to tell.
    """
    import optuna

    trials = _complete(study)
    if len(trials) < 2:
        raise ValueError(f"Importances need at least 2 trials that ran to their end, but there are {len(trials)}.")
    alike = (
        "The best tenth of the trials is as good as all the others: nothing can be said about what made the difference."
    )
    if len({t.value for t in trials}) < 2:
        raise ValueError(alike)
    if not any(t.distributions for t in trials):
        raise ValueError("The trials have no parameters that were searched.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some regimes for parameter", UserWarning)  # `rough` says it
        warnings.filterwarnings("error", "Target and region quantiles select the same set", UserWarning)
        try:
            values = optuna.importance.get_param_importances(study)
        except UserWarning:
            raise ValueError(alike) from None
    return Importances({n: float(v) for n, v in values.items()}, len(trials), tuple(filter(_rough(trials), values)))


def telling_parameters(study: optuna.Study) -> list[str]:
    """The parameters with more than one value among the complete trials, by name."""
    found: dict[str, set[Any]] = {}
    for trial in _complete(study):
        for name, value in trial.params.items():
            found.setdefault(name, set()).add(value)
    return sorted(name for name, values in found.items() if len(values) > 1)


def shown_trials(sweep: SweepRecord, most: int) -> frozenset[int]:
    """The numbers of the trials for a picture: half of them the best, the others a sample, always the same one."""
    return frozenset(t.number for t in drawn(complete_trials(sweep), most // 2, most))


def sampled_trials(sweep: SweepRecord) -> frozenset[int]:
    """The numbers of the trials for the importances: a sample that leans towards none, always the same one."""
    return frozenset(t.number for t in drawn(complete_trials(sweep), 0, MOST_TRIALS))


def complete_trials(sweep: SweepRecord) -> list[TrialRecord]:
    """The trials that Optuna's pictures show, best first."""
    return [t for t in sweep.trials if t.state == "COMPLETE" and t.value is not None]


def complete_values(sweep: SweepRecord) -> list[float]:
    """The values of those trials."""
    return [t.value for t in complete_trials(sweep) if t.value is not None]


def draw(study: optuna.Study, plot: Plot, parameters: Sequence[str], value: str = "validation accuracy") -> go.Figure:
    """The picture of the study, whose trials have such a `value`. Raises ValueError with a sentence when Optuna cannot draw it."""
    for trial in _complete(study):
        trial.number = trial.user_attrs.get("number", trial.number)  # as in the sweep: pictures tell it
    try:
        figure = plot.draw(study, parameters, value)
    except Exception as error:  # other programs may have put trials there of which Optuna's plots make nothing
        raise ValueError(f"Optuna cannot draw this: {type(error).__name__}: {error}.") from error
    figure.update_xaxes(exponentformat="power").update_yaxes(exponentformat="power")  # not 1µ for a learning rate
    return figure.update_layout(title_text="", height=_HEIGHT, margin={"t": 20, "b": 10, "l": 10, "r": 10})


def draw_distribution(values: Mapping[str, Sequence[float]], value: str = "validation accuracy") -> go.Figure:
    """Optuna's empirical distribution function of the values under each name: which share of them is at most so high."""
    import optuna

    studies = []
    for name, known in values.items():
        studies.append(study := optuna.create_study(study_name=name))
        study.add_trials([optuna.trial.create_trial(value=one) for one in known])
    figure = optuna.visualization.plot_edf(studies, target_name=value)
    figure.update_yaxes(title_text="share of the trials")
    legend = {"orientation": "h", "y": -0.2}
    return figure.update_layout(
        title_text="", height=_HEIGHT, margin={"t": 20}, showlegend=len(values) > 1, legend=legend
    )


def _parallel_coordinates(study: optuna.Study, parameters: Sequence[str], value: str) -> go.Figure:
    import optuna

    figure = optuna.visualization.plot_parallel_coordinate(study, list(parameters), target_name=value)
    # Optuna sorts the parameters, and cuts long names off.
    names = [value, *sorted(set(parameters))]
    figure.update_xaxes(ticktext=[_in_lines(name) for name in names], tickangle=0, automargin=True)
    figure.update_annotations(font_color="gray")  # readable on a dark page too
    return figure.update_layout(plot_bgcolor="rgba(128,128,128,0.12)")  # on white the worst trials are invisible


def _slices(study: optuna.Study, parameters: Sequence[str], value: str) -> go.Figure:
    import optuna

    figure = optuna.visualization.plot_slice(study, list(parameters), target_name=value)
    figure.for_each_xaxis(_break_title)
    numbers = [trial.number for trial in _complete(study)]
    first, last = min(numbers), max(numbers)
    figure.update_traces(marker_cmin=first, marker_cmax=last)  # the same colours in all slices
    if last - first < 10:
        figure.update_traces(marker_colorbar_dtick=1)  # no trial 0.5
    return figure.update_layout(width=None, autosize=True)  # as wide as the page, not 300 pixels for each


def _contour(study: optuna.Study, parameters: Sequence[str], value: str) -> go.Figure:
    import optuna

    x, y = parameters
    if not any(x in t.params and y in t.params for t in _complete(study)):
        raise ValueError(f"No trial that ran to its end has both {x} and {y}.")
    return optuna.visualization.plot_contour(study, [x, y], target_name=value)


def _ranks(study: optuna.Study, parameters: Sequence[str], value: str) -> go.Figure:
    import optuna

    figure = optuna.visualization.plot_rank(study, list(parameters), target_name=value)
    for trace in figure.data:
        if trace.hovertext is not None:  # all parameters of each trial in each of the pictures: megabytes
            trace.hovertext = [_first_and_last(text) for text in trace.hovertext]
    figure.for_each_xaxis(_break_title)
    figure.for_each_yaxis(_break_title)
    return figure


PLOTS = (
    Plot(
        "Parallel coordinates",
        _parallel_coordinates,
        "Each line is a trial, the darker the better. *None*: the trial does not have that parameter.",
        trials=300,
        fewest=1,
        most=9,
        preset=6,
    ),
    Plot(
        "Slices",
        _slices,
        "Each point is a trial, the darker the later.",
        trials=MOST_TRIALS,
        fewest=1,
        most=5,
        preset=4,
    ),
    Plot(
        "Contour",
        _contour,
        "The value over two parameters; the points are the trials that have both.",
        trials=150,
        fewest=2,
        most=2,
        preset=2,
    ),
    Plot(
        "Ranks",
        _ranks,
        "Each point is a trial that has both parameters, the redder the higher its value ranks.",
        trials=MOST_TRIALS,
        fewest=2,
        most=4,
        preset=3,
    ),
)
"""What the page offers to draw."""


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    import optuna

    return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))


def _rough(trials: Sequence[optuna.trial.FrozenTrial]) -> Callable[[str], bool]:
    def is_rough(name: str) -> bool:
        cases: dict[Any, int] = {}
        for trial in trials:
            case = trial.distributions.get(name)
            cases[case] = cases.get(case, 0) + 1
        return min(cases.values()) < 2

    return is_rough


def _in_lines(name: str) -> str:
    """'optimizer.learning_rate' in two lines, which plotly's axes have room for."""
    return name.replace(".", ".<br>", 1).replace(" ", "<br>")


def _break_title(axis: Any) -> None:
    if axis.title.text:
        axis.title.text = _in_lines(axis.title.text)


def _first_and_last(text: str) -> str:
    lines = text.split("<br>")
    return "<br>".join([lines[0], lines[-1]])
