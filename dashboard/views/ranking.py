"""The page of a sweep's ranking: headline numbers, the ranked trials, value against cost, learning curves, what was confirmed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import streamlit as st

from cluster.experiments import Experiments
from cluster.record import SweepRecord, TrialRecord
from dashboard import budget_bars, captions, charts, confirmed_table, leaderboard, pareto, report, sweep_facts, tables
from dashboard.leaderboard import Board
from dashboard.parts import counted, follow, heading, plain

CURVES_BY_DEFAULT = 5
COMPARED = range(2, 7)
FAILURES_SHOWN = 10


def show(experiments: Experiments, name: str) -> None:
    """The page; while the sweep runs, it follows it."""
    follow(experiments, name, partial(_content, experiments))


def _content(experiments: Experiments, sweep: SweepRecord) -> None:
    heading(sweep.name, sweep.state)
    _facts(sweep)
    _headline(sweep)
    if not sweep.trials:
        st.info("The sweep has no trials yet.")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        board, columns = leaderboard.choose(sweep)
        _report(experiments, sweep)
        st.space("medium")
        _lead_on(sweep)
    place = st.container()
    left, right = st.columns(2, gap="medium")
    with left:
        cost = _choose_cost(sweep, board)
    front = pareto.front(board.table, cost, sweep.config.goal)
    marked = sweep.front if sweep.config.goals else front
    with place:
        selected = leaderboard.show(sweep, board, columns, leaderboard.marks(board.table, marked))
    with left:
        _value_against_cost(sweep, board, cost, front, selected)
    with right:
        _curves(sweep, selected or board.trials, by_choice=bool(selected))
    confirmed_table.show(sweep)
    _failures(sweep)


def _facts(sweep: SweepRecord) -> None:
    config = sweep.config
    st.caption(" · ".join(sweep_facts.settings(sweep, shown=plain)))
    if sweep.is_live and config.trials:
        ended = len(sweep.trials) - sweep.counts["RUNNING"] - sweep.counts["WAITING"]
        st.progress(min(1.0, ended / config.trials), text=f"{ended} of {config.trials} trials have ended")
    budget_bars.show(config.budget.limits(sweep.spent) if sweep.is_live else (), sweep.ending)


def _headline(sweep: SweepRecord) -> None:
    with st.container(horizontal=True):
        for number in sweep_facts.headline(sweep):
            st.metric(
                number.label,
                number.value,
                number.below,
                delta_color="off",
                delta_arrow="off",
                help=number.about,
                border=True,
            )
    if sweep.baseline:
        st.caption(f":orange-badge[preset] {sweep_facts.baseline_in_words(sweep, sweep.baseline, shown=plain)}")


def _report(experiments: Experiments, sweep: SweepRecord) -> None:
    """The whole sweep as a file to send around, which is made when it is asked for."""
    st.download_button(
        "Report (HTML)",
        partial(report.report_of, experiments, sweep),
        file_name=f"{sweep.name}.html",
        mime="text/html",
        help="One file for any browser, without a network: ranking, curves, importances, the winner. It takes some seconds.",
        on_click="ignore",
    )


def _lead_on(sweep: SweepRecord) -> None:
    """What can be done with the selected trials."""
    numbers = leaderboard.selection(sweep)
    selected = f"{counted(len(numbers), 'trial')} selected" if numbers else "Select rows of the table"
    _link("trial", "Open", f"Show one trial. {selected}.", "trial", numbers, enabled=len(numbers) == 1)
    some = f"Compare {COMPARED.start} to {COMPARED.stop - 1} trials. {selected}."
    _link("compare", "Compare", some, "trials", numbers, enabled=len(numbers) in COMPARED)
    st.button("Clear", help="Select none", on_click=leaderboard.select, args=(sweep, ()), disabled=not numbers)


def _link(page: str, label: str, about: str, key: str, numbers: Sequence[int], enabled: bool) -> None:
    """A link to another page with these numbers in its address, to which Streamlit adds the sweep."""
    there = st.Page(lambda: None, title=label, url_path=page)  # Streamlit knows a page by its address alone
    address = {key: [str(number) for number in numbers]}
    st.page_link(there, label=label, help=about, query_params=address, disabled=not enabled)


def _choose_cost(sweep: SweepRecord, board: Board) -> str:
    st.subheader(f"{sweep.config.goal.title} against cost")
    offered = pareto.offered(board.table)
    wanted = [name for name in sweep.config.goals if name in offered]
    return st.segmented_control(
        "Cost",
        offered,
        format_func=lambda name: pareto.COSTS[name].label,
        default=[*wanted, "parameters"][0],
        required=True,
        label_visibility="collapsed",
        key="cost",
        bind="query-params",
    )


def _value_against_cost(
    sweep: SweepRecord, board: Board, cost: str, front: frozenset[int], selected: Sequence[TrialRecord]
) -> None:
    numbers, goal = [t.number for t in selected], sweep.config.goal
    points = pareto.points(board.table, cost, front, numbers, goal=goal)
    if points.empty:
        st.info("No trial that is shown has run to its end.")
        return
    there = pareto.complete_count(board.table, cost)
    bounds = pareto.bounds(sweep, cost)
    key = f"cost of {sweep.name}"
    st.altair_chart(
        charts.value_against_cost(points, pareto.COSTS[cost], numbers, goal, bounds),
        key=key,
        on_select=partial(_take_clicked, sweep, key),
        selection_mode=charts.CLICKED,
        alt=f"Validation {goal.label} of the complete trials against their {pareto.COSTS[cost].label}, and the Pareto front",
    )
    st.caption(f"{captions.front(bool(bounds), len(points), there)} A click selects a trial.")


def _take_clicked(sweep: SweepRecord, key: str) -> None:
    """The reader has clicked a point: select its trial too."""
    clicked = [int(point["trial"]) for point in st.session_state[key]["selection"][charts.CLICKED]]
    numbers = leaderboard.selection(sweep)
    leaderboard.select(sweep, [*numbers, *(number for number in clicked if number not in numbers)])


def _curves(sweep: SweepRecord, trials: Sequence[TrialRecord], by_choice: bool) -> None:
    st.subheader("Learning curves")
    if not by_choice:
        trials = [*itertools.islice((t for t in trials if t.epochs_done), CURVES_BY_DEFAULT)]
    goal = sweep.config.goal
    values, losses, progress = st.tabs(
        [goal.title, "Losses", "Progress of the search"], key="curves", on_change="rerun"
    )
    curves = tables.learning_curves(trials, goal)
    whose = "Of the selected trials." if by_choice else "Of the best trials shown; select rows to see others."
    if curves.empty:
        values.info("No epoch of these trials has ended.")
        losses.info("No epoch of these trials has ended.")
    elif values.open:
        values.altair_chart(
            charts.metric_by_epoch(curves, goal, legend_columns=3), alt=f"Validation {goal.label} after each epoch"
        )
        values.caption(whose)
    elif losses.open:
        losses.altair_chart(
            charts.losses_by_epoch(curves, legend_columns=3), alt="Training and validation loss of each epoch"
        )
        losses.caption(f"{whose} Validation solid with dots, training dashed with triangles.")
    if progress.open:
        found, label = tables.best_so_far(sweep.trials, goal), goal.label
        progress.altair_chart(
            charts.best_by_trial(found, goal), alt=f"Validation {label} of each trial and the best so far"
        )
        progress.caption(f"Each trial's validation {label}; the line is the best of the complete trials so far.")


def _failures(sweep: SweepRecord) -> None:
    failures = tables.failures(sweep.trials)
    if failures:
        st.subheader("Failed trials")
    for reason, trials in list(failures.items())[:FAILURES_SHOWN]:
        title = f"{tables.trial_names(trials)}: {plain(reason)}"
        with st.expander(title, expanded=len(failures) == 1):
            st.code(trials[0].error or reason, language=None, wrap_lines=True)
    if len(failures) > FAILURES_SHOWN:
        st.caption(
            f"And {counted(len(failures) - FAILURES_SHOWN, 'other error')}: choose the state FAIL above the table."
        )
