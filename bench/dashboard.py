"""Measure how fast the dashboard's ranking is with a study of many trials, in a real Chromium.

    python -m bench.dashboard --trials 10000 --epochs 20

Makes a synthetic study, starts the server as a user does, and takes the times in the browser: of the first paint of the
table since the navigation began, for a browser that has Streamlit's own files (5 MB of JavaScript) and for one that has to
load them first, the latter beside a study of 20 trials, which is what Streamlit itself takes; of a rerun in which nothing
is new; and of a rerun after one trial has ended, until the table shows it. Needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import optuna
from playwright.sync_api import Browser, Page, sync_playwright

from bench.synthetic import EPOCH_SECONDS, NAME, learning_curve, write_study
from cluster.experiments import Experiments
from cluster.running_trial import RunningTrial
from cluster.studies import Studies

VISITS = 5
FEW = 20
TIMES = 5
SECONDS = 120_000.0

# The table is a canvas: what is written there is on the screen with the next frame. The rerun's beginning is the moment in
# which the browser asks for it, its end the moment in which the page says that the script has ended.
WATCH = """
(() => {
  const seen = window.convsweep = {painted: {}, asked: 0, ended: 0};
  const fillText = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function(text, ...rest) {
    if (!(text in seen.painted)) seen.painted[text] = performance.now();
    return fillText.call(this, text, ...rest);
  };
  const send = WebSocket.prototype.send;
  WebSocket.prototype.send = function(data) { seen.asked = performance.now(); return send.call(this, data); };
  new MutationObserver(() => {
    const app = document.querySelector('[data-testid="stApp"]');
    const state = app && app.dataset.testScriptState;
    if (state !== seen.state && state === 'notRunning') seen.ended = performance.now();
    seen.state = state;
  }).observe(document, {subtree: true, childList: true, attributes: true, attributeFilter: ['data-test-script-state']});
})()
"""


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        experiments = Experiments(Path(folder))
        made = seconds(lambda: write_study(experiments, NAME, given.trials, given.epochs))
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
        print(
            f"{given.trials:,} trials of up to {given.epochs} epochs, {size:.0f} MB, written in {made:.0f} s",
            flush=True,
        )
        print(f"{os.cpu_count()} cores, of which {os.getloadavg()[0]:.1f} are busy", flush=True)
        with browser() as chromium:
            paints = [first_paints(chromium, experiments) for _ in range(VISITS)]
            say("first paint of the ranking, under 2 s", [again for _, again in paints])
            say("the same, nothing in the browser's cache", [first for first, _ in paints])
            small = Experiments(Path(folder) / "small")
            small.folder.mkdir()
            write_study(small, NAME, FEW, given.epochs)
            say(f"the same of {FEW} trials", [first_paints(chromium, small)[0] for _ in range(VISITS)])
            with server(experiments) as address:
                page = visit(chromium, address)
                say("rerun, nothing has changed", [rerun(page) for _ in range(TIMES)])
            say("reading with convsweep", [seconds(lambda: Studies(experiments).read(NAME))])
            say("reading with optuna.Study.get_trials", [seconds(lambda: read_with_optuna(experiments))])
            say("refresh after a trial has ended, under 0.5 s", refreshes(chromium, experiments))


def say(what: str, found: Sequence[float]) -> None:
    """Print a line with the median."""
    each = " ".join(f"{value:.2f}" for value in found)
    print(f"{what:45} {statistics.median(found):6.2f} s   ({each})", flush=True)


def seconds(function: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def read_with_optuna(experiments: Experiments) -> None:
    """As any Optuna program reads the study."""
    optuna.load_study(study_name=NAME, storage=experiments.database).get_trials()


def first_paints(chromium: Browser, experiments: Experiments) -> tuple[float, float]:
    """The seconds from the navigation to the table: of a new server's first visitor, and when that browser comes again."""
    best = best_value(experiments)
    with server(experiments) as address:
        page = visit(chromium, address)
        first = _painted(page, best)
        page.goto("about:blank")
        go(page, address)
        again = _painted(page, best)
        page.context.close()
    return first, again


def _painted(page: Page, text: str) -> float:
    milliseconds: float = page.evaluate("text => window.convsweep.painted[text]", text)
    return milliseconds / 1000


def rerun(page: Page) -> float:
    """The seconds that the page takes when it is asked to run again, until it has ended."""
    page.evaluate("window.convsweep.asked = window.convsweep.ended = 0")
    page.keyboard.press("r")
    page.wait_for_function("window.convsweep.ended > window.convsweep.asked && window.convsweep.asked", timeout=SECONDS)
    took: float = page.evaluate("window.convsweep.ended - window.convsweep.asked")
    return took / 1000


def refreshes(chromium: Browser, experiments: Experiments) -> list[float]:
    """The seconds from the browser's asking until the table shows the trial that has just become the best."""
    running = run_on(experiments)
    found = []
    with server(experiments) as address:
        page = visit(chromium, address)
        for trial in running:
            trial.complete()
            value = f"{max(e.val_accuracy for e in trial.epochs):.4f}"
            page.wait_for_function("value => value in window.convsweep.painted", arg=value, timeout=SECONDS)
            found.append(
                page.evaluate("value => window.convsweep.painted[value] - window.convsweep.asked", value) / 1000
            )
            page.wait_for_function("window.convsweep.ended > window.convsweep.asked", timeout=SECONDS)
    return found


def run_on(experiments: Experiments) -> list[RunningTrial]:
    """The sweep runs again, and some more trials are about to end, each of them better than all before."""
    study = Studies(experiments).open(NAME)
    study.begin_run(study.config, groups=1)
    study.note_startup(1.0)
    trials = [study.ask() for _ in range(TIMES)]
    for place, trial in enumerate(trials):
        trial.begin(parameters=100_000, group="group-0", group_began=time.time())
        for metrics in learning_curve(0.99 + 0.001 * place, study.config.epochs):
            trial.report(metrics, EPOCH_SECONDS * metrics.epoch)
    return trials


def best_value(experiments: Experiments) -> str:
    """The best trial's accuracy as the table writes it."""
    return f"{Studies(experiments).read(NAME).best_or_error().value:.4f}"


def visit(chromium: Browser, address: str) -> Page:
    """A new visitor's page, when the table is there and the script has ended."""
    page = chromium.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.add_init_script(WATCH)
    go(page, address)
    return page


def go(page: Page, address: str) -> None:
    """Navigate, and wait until the table is there and the script has ended."""
    page.goto(f"{address}/?sweep={NAME}")
    page.wait_for_function(
        r"Object.keys(window.convsweep.painted).some(text => /^0\.\d{4}$/.test(text)) && window.convsweep.ended",
        timeout=SECONDS,
    )


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium: that of the system where there is one, else playwright's."""
    installed = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def server(experiments: Experiments) -> Iterator[str]:
    """The dashboard as a user starts it; gives its address once it listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "dashboard",
        "--experiments",
        str(experiments.folder),
        "--no-browser",
        "--port",
        port,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if "dashboard" not in process.stdout.readline():
                raise RuntimeError("The dashboard's server does not start.")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.communicate()  # what it still says must have a reader


if __name__ == "__main__":
    main()
