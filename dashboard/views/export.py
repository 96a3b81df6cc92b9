"""The page that exports a trial's model as a bundle, hands the bundle out, and tries it on pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import streamlit as st

from cluster.experiments import Experiments
from cluster.preference import preference
from cluster.record import SweepRecord, TrialRecord
from dashboard import bundles, trial_charts
from dashboard.bundles import EXPORTER, Export, Written
from dashboard.parts import choose_trial, counted, heading, plain, read_or_stop
from trainer.images import UPLOAD_FORMATS, BrokenImageError

if TYPE_CHECKING:
    from trainer.bundle import Bundle

REFRESH_SECONDS = 0.5
UPLOAD_MEGABYTES = 10
MOST_UPLOADS = 12
BAR_HEIGHT = 24


def show(experiments: Experiments, name: str) -> None:
    """The page; while an export is under way, it follows it."""
    sweep = read_or_stop(experiments, name)
    heading(sweep.name, sweep.state)
    if not sweep.trials:
        st.info("The sweep has no trials yet: there is no model to export.")
        return
    experiments = experiments.of(sweep.storage_path)
    _say_what_the_command_takes(sweep)
    trial = choose_trial(sweep)
    folder = experiments.bundle(sweep.name, trial.number)
    try:
        written = bundles.read(folder)
    except ValueError as error:
        st.error(plain(str(error)))
        written = None
    running = EXPORTER.running
    if running is not None:
        _follow(running, folder)
    else:
        _offer_export(experiments, sweep, trial, written)
    if written is not None and (running is None or running.folder != folder):
        _bundle(written, sweep, trial)


# ---- exporting ----


def _say_what_the_command_takes(sweep: SweepRecord) -> None:
    preferred = preference(sweep)
    if preferred is not None:
        command = (
            f"`convsweep export {sweep.name}` writes its bundle; this page exports the models that the search trained."
        )
        st.info(f"{plain(preferred.reason)} {command}")


def _offer_export(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord, written: Written | None) -> None:
    missing = bundles.missing(experiments, sweep, trial)
    failed = EXPORTER.failed(experiments.bundle(sweep.name, trial.number))
    if missing is not None:
        st.warning(plain(missing))
    elif failed is not None:
        st.error(plain(f"The export failed. {failed}"))
    label = f"Export trial {trial.number}" if written is None else f"Export trial {trial.number} again"
    with st.container(horizontal=True):
        st.button(
            label,
            type="primary" if written is None else "secondary",
            disabled=missing is not None,
            on_click=EXPORTER.start,
            args=(experiments, sweep, trial),
        )
        if written is not None:
            name = f"{sweep.name}-trial-{trial.number}"
            st.download_button(
                f"Download as a zip ({written.megabytes:.1f} MB)",
                partial(bundles.zipped, written.folder, name),
                file_name=f"{name}.zip",
                mime="application/zip",
                icon="⬇️",
                on_click="ignore",
            )
    if written is None and missing is None:
        st.caption(
            "The model becomes a folder that classifies images without convsweep: the network as a graph, its weights, its scores "
            "on the validation and the test split, and a model card. It takes seconds, or minutes with many images."
        )


def _follow(export: Export, folder: Path) -> None:
    if export.folder != folder:
        which = f"Trial {export.trial} of sweep {export.sweep} is being exported; this one can be when it is done."
        st.info(plain(which))

    def progress() -> None:
        if export.over.is_set():
            st.rerun()  # the whole page, with what was written
        with st.status(f"Exporting trial {export.trial}", expanded=True):
            for step in export.steps:
                st.write(plain(step))
            if export.images is not None:
                done, total = export.images
                st.progress(min(1.0, done / max(1, total)), text=f"{done:,} of {total:,}")

    st.fragment(progress, run_every=REFRESH_SECONDS)()


# ---- the bundle ----


def _bundle(written: Written, sweep: SweepRecord, trial: TrialRecord) -> None:
    with st.container(horizontal=True):
        for split, scores in written.scores.items():
            images = counted(int(scores["images"]), "image")
            st.metric(f"{split.capitalize()} accuracy", f"{scores['accuracy']:.4f}", help=f"On {images}", border=True)
        help_text = "The median time of one image on the processor that exported it"
        st.metric("Latency", f"{written.latency_milliseconds:.2f} ms", help=help_text, border=True)
    trying, card = st.tabs(["Try it", "Model card"])
    with trying:
        st.fragment(partial(_try, written))()
    with card, st.container(border=True):
        st.markdown(written.card, anchors=False)
        with st.container(horizontal=True):
            for picture in written.pictures:
                st.image(str(picture), alt=f"{picture.stem} of the model", width=380)
    st.caption(f"The bundle of {plain(sweep.name)}, trial {trial.number}, is in {plain(str(written.folder))}.")


def _try(written: Written) -> None:
    endings = [ending for endings in UPLOAD_FORMATS.values() for ending in endings]
    uploads = st.file_uploader(
        "Drop pictures here to see what the model makes of them; they are not kept",
        type=endings,
        accept_multiple_files=True,
        max_upload_size=UPLOAD_MEGABYTES,
        key="pictures to try",
    )
    samples = st.pills(
        "Or take test images of the bundle",
        list(written.samples),
        format_func=plain,
        selection_mode="multi",
        key=f"samples of {written.folder}",
    )
    if len(uploads) > MOST_UPLOADS:
        st.caption(f"Of {len(uploads)} pictures the first {MOST_UPLOADS} are classified.")
    sources: list[Path | IO[bytes]] = [*uploads[:MOST_UPLOADS], *(written.samples[label] for label in samples)]
    if not sources:
        return
    try:
        model = bundles.load(written.folder, written.version)
    except ValueError as error:
        st.error(plain(str(error)))
        return
    for source in sources:
        _prediction(model, source)


def _prediction(model: Bundle, source: Path | IO[bytes]) -> None:
    try:
        picture, table = bundles.preview(model, source), bundles.probabilities(model, source)
    except BrokenImageError as error:
        st.error(plain(str(error)))
        return
    name = Path(source.name).name
    likeliest, probability = table["class"][0], table["probability"][0]
    with st.container(border=True):
        left, right = st.columns([1, 3], vertical_alignment="center")
        left.image(picture, caption=plain(name), width="stretch", alt=f"The picture {name}")
        right.markdown(f"**{plain(likeliest)}**, with probability {probability:.3f}")
        right.altair_chart(
            trial_charts.probabilities(table, BAR_HEIGHT * len(table)),
            alt=f"The probabilities of the classes for {name}",
        )
