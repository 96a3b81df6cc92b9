"""What a trial's page shows that needs its weights or their analysis: its classes, mistakes, attention and kernels."""

from __future__ import annotations

import contextlib
from functools import partial

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from cluster.experiments import Experiments
from cluster.record import SweepRecord, TrialRecord
from dashboard import analyses, analysis_tables, pictures, trial_charts, trial_tables
from dashboard.parts import plain
from trainer.analysis import Analysis, Pictures


def classes(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> None:
    """The confusion matrix, the scores of each class, the commonest mistakes and the calibration."""
    analysis = _analysis(experiments, sweep, trial)
    if analysis is None:
        return
    st.caption(analysis_tables.scores_in_short(analysis))
    left, right = st.columns(2)
    with left:
        _confusion(analysis)
    with right:
        st.markdown("**Precision, recall and F1 of each class**")
        score = partial(
            st.column_config.ProgressColumn, format="%.3f", min_value=0, max_value=1, color="blue", width="small"
        )
        st.dataframe(
            analysis_tables.class_table(analysis),
            hide_index=True,
            column_config={name: score(name) for name in ("precision", "recall", "F1")}
            | {"images": st.column_config.NumberColumn(width=60)},
            alt="Precision, recall and F1 of each class",
        )
    left, right = st.columns(2)
    with left:
        st.markdown("**Calibration**: as sure as right?")
        bins = analysis_tables.calibration_bins(analysis.calibration)
        st.altair_chart(trial_charts.calibration(bins, 250), alt="Accuracy by confidence")
        st.altair_chart(trial_charts.confidence(bins, 80), alt="How many images there are by confidence")
        st.caption(
            f"Bars: how often it is right, orange: how far that is from how sure it is. Expected calibration error "
            f"{analysis.calibration.error:.4f}."
        )
    with right:
        st.markdown("**The commonest mistakes**")
        share = st.column_config.NumberColumn("share", format="%.1f %%", help="Of the true class's images")
        st.dataframe(
            analysis_tables.confused_pairs(analysis),
            hide_index=True,
            column_config={"share": share},
            alt="The pairs of classes that are confused most",
        )


def _confusion(analysis: Analysis) -> None:
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown("**Confusion matrix**", width="content")
        unit = st.segmented_control(
            "Cells",
            ("images", "percent of the true class"),
            default="images",
            required=True,
            label_visibility="collapsed",
        )
    shown = [analysis.classes[i] for i in analysis_tables.most_confused(analysis)]
    cells = analysis_tables.confusion_cells(analysis, as_share=unit != "images")
    chart = trial_charts.confusion(cells, shown, 430, dark=st.context.theme.type == "dark")
    st.altair_chart(chart, alt="How many images of each class were taken for which")
    if len(shown) < len(analysis.classes):
        st.caption(f"The {len(shown)} of {len(analysis.classes)} classes with the most mistakes.")


def mistakes(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> None:
    """The most confident mistakes as pictures."""
    analysis = _analysis(experiments, sweep, trial)
    if analysis is None:
        return
    mistakes = analysis.mistakes
    if not len(mistakes):
        st.success("It makes no mistakes on the validation split.")
        return
    st.caption("The wrong predictions that it was surest of, the surest first, with the probability that it gave.")
    with st.grid(6, gap="small", min_column_width=96):
        for i, image in enumerate(mistakes.images):
            caption = analysis_tables.caption(analysis, mistakes, i)
            st.image(pictures.enlarged(image), width="stretch", caption=plain(caption), alt=caption)


def attention(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> None:
    """Where the network looks in a picture that the reader chooses."""
    analysis = _analysis(experiments, sweep, trial)
    if analysis is None:
        return
    left, right = st.columns([3, 7])
    with left:
        chosen, i = _choose_picture(analysis)
    with right, loading_torch():
        _explanation(experiments, sweep, trial, analysis, chosen, i)


def _choose_picture(analysis: Analysis) -> tuple[Pictures, int]:
    """A table of the pictures, of which one is chosen: the mistakes, then some of each class."""
    which = st.segmented_control(
        "Pictures",
        ("mistakes", "samples"),
        default="mistakes",
        required=True,
        label_visibility="collapsed",
        key="pictures",
    )
    chosen = analysis.samples if which == "samples" or not len(analysis.mistakes) else analysis.mistakes
    table = analysis_tables.picture_table(analysis, chosen)
    state = st.dataframe(
        table,
        hide_index=True,
        height=340 if len(chosen) > 4 else "content",
        row_height=60,
        column_config={"picture": st.column_config.ImageColumn("", width=64)},
        key=f"pictures: {which}",
        on_select="rerun",
        selection_mode="single-row-required",
        alt="Pictures to look at",
    )
    rows = state["selection"]["rows"]
    return chosen, rows[0] if rows and rows[0] < len(chosen) else 0


def _explanation(
    experiments: Experiments, sweep: SweepRecord, trial: TrialRecord, analysis: Analysis, chosen: Pictures, i: int
) -> None:
    image, true, predicted = chosen.images[i], int(chosen.labels[i]), int(chosen.predicted[i])
    labels = (predicted, true) if predicted != true else (predicted,)
    found = analyses.explain(experiments, sweep, trial, image, labels)
    names = [analysis.classes[label] for label in labels]
    places = st.columns(3)
    places[0].image(
        pictures.enlarged(image), width="stretch", caption=f"it is {plain(analysis.classes[true])}", alt="The picture"
    )
    for place, label, name in zip(places[1:], labels if found.heat else (), names, strict=False):
        heat = found.heat[label]
        caption = analysis_tables.heat_caption(name, found.probabilities[label], heat)
        place.image(pictures.heat_picture(image, heat), width="stretch", caption=plain(caption), alt=caption)
    if found.note:
        st.info(plain(found.note))
    else:
        st.caption("Grad-CAM: the warmer a place, the more the last convolution's answer there speaks for the class.")
    table = analysis_tables.probability_table(analysis.classes, found.probabilities, true)
    st.altair_chart(trial_charts.probabilities(table, 150), alt="The likeliest classes and their probabilities")


def kernels(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> None:
    """The first layer's kernels, and what they answer to a picture."""
    kernels = analyses.kernels(experiments, sweep.name, trial)
    if kernels is None:
        st.info(trial_tables.why_no_weights(trial))
        return
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown(analysis_tables.kernel_heading(kernels))
        st.image(pictures.mosaic(pictures.kernel_pictures(kernels)), width="stretch", alt="The first layer's kernels")
        st.caption(analysis_tables.kernel_caption(kernels))
    with right:
        st.markdown("**What they answer to a picture**")
        analysis = _analysis(experiments, sweep, trial)
        if analysis is not None:
            _responses(kernels, analysis)


def _responses(kernels: NDArray[np.float32], analysis: Analysis) -> None:
    samples = analysis.samples
    # Numbered, since a box takes options with the same text for one.
    texts = [f"{i}: {analysis_tables.caption(analysis, samples, i - 1)}" for i in range(1, len(samples) + 1)]
    with st.container(horizontal=True, vertical_alignment="center"):
        place = st.empty()
        chosen = st.selectbox("Picture", texts, label_visibility="collapsed", key="kernels: picture")
    i = texts.index(chosen)
    place.image(pictures.enlarged(samples.images[i]), width=40, alt="The picture")
    answers = pictures.response_pictures(kernels[: pictures.MOST_FILTERS], samples.images[i])
    st.image(pictures.mosaic(answers), width="stretch", alt="What each kernel answers to the picture")


def _analysis(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> Analysis | None:
    """The trial's analysis. Where there is none, what can be done about it is shown instead, and done."""
    try:
        found = analyses.stored(experiments, sweep.name, trial)
    except ValueError as error:
        st.warning(plain(str(error)))
        found = None
    if found is not None:
        if sweep.config.folds > 1:
            st.caption("Of the network that the first fold trained, on the images that this fold holds out.")
        return found
    if not analyses.has_weights(experiments, sweep.name, trial):
        st.info(trial_tables.why_no_weights(trial))
        return None
    missing = analyses.missing_data(sweep)
    if missing is not None:
        st.info(plain(missing))
        return None
    return _analyse(experiments, sweep, trial)


def _analyse(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> Analysis | None:
    place = st.empty()
    with place.container():
        st.info(
            "This needs the trial's analysis: its network classifies the validation split once. What comes of it is kept with the trial."
        )
        if not st.button("Analyse", type="primary", key="analyse"):
            return None
        bar = st.progress(0.0)

        def show_progress(text: str, share: float) -> None:
            bar.progress(share, text=text)

        analyses.analyse_trial(experiments, sweep, trial, show_progress)
    place.empty()
    return analyses.stored(experiments, sweep.name, trial)


def loading_torch() -> contextlib.AbstractContextManager[None]:
    """Says what the first reader waits for."""
    return contextlib.nullcontext() if analyses.torch_is_loaded() else st.spinner("Loading PyTorch")
