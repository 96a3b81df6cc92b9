"""Every page of the dashboard in a real Chromium, over a real finished sweep and over one that runs.

`python -m pytest tests/test_browser.py -q`; with CONVSWEEP_PICTURES=FOLDER the pages' pictures are kept there.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from cluster.experiments import Experiments
from cluster.studies import Studies
from tests.services import chromium, dashboard

PAGES = ("ranking", "sweeps", "search", "trial", "compare", "export", "cluster")
# What has no scroll bar of its own and reaches beyond the window is cut off.
CUT_OFF = """
() => {
  const cut = [];
  for (const element of document.querySelectorAll('[data-testid="stMain"] *')) {
    const box = element.getBoundingClientRect();
    if (box.width < 1 || box.height < 1 || box.right <= window.innerWidth + 1) continue;
    let inside = element.parentElement, scrolls = false;
    while (inside && inside.dataset.testid !== 'stMain') {
      const style = getComputedStyle(inside);
      if (/(auto|scroll|hidden|clip)/.test(style.overflowX) && inside.getBoundingClientRect().right <= window.innerWidth + 1)
        scrolls = true;
      inside = inside.parentElement;
    }
    if (!scrolls) cut.push(element.tagName + ' ' + (element.textContent || '').slice(0, 60));
  }
  return cut;
}
"""

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@dataclass
class Visitor:
    """A reader in front of the dashboard; `complaints` is what the browser's console had to say, `elsewhere` what it asked others for."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", self._note_request)
        self.page.on("console", lambda m: self._note_console(m))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note_console(self, message: ConsoleMessage) -> None:
        # Streamlit looks for its server under the page's own address first.
        looking = message.location["url"].endswith(("/_stcore/health", "/_stcore/host-config"))
        if message.type == "error" and not looking:
            self.complaints.append(f"{message.text} ({message.location['url']})")

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:", self.address.replace("http", "ws", 1))):
            self.elsewhere.append(request.url)

    def open(self, path: str, sweep: str, **more: object) -> None:
        query = "".join(f"&{key}={value}" for key, value in more.items())
        self.page.goto(f"{self.address}/{'' if path == PAGES[0] else path}?sweep={sweep}{query}")
        self.settle()

    def settle(self) -> None:
        """Wait until the page is whole: nothing runs, nothing is a skeleton."""
        self.page.wait_for_selector('[data-testid="stMain"] [data-testid="stVerticalBlock"] >> nth=0')
        app = self.page.locator('[data-testid="stApp"]')
        expect(app).to_have_attribute(
            "data-test-script-state", re.compile("notRunning|rerunRequested"), timeout=120_000
        )
        expect(self.page.locator('[data-testid="stSkeleton"]')).to_have_count(0, timeout=120_000)
        expect(self.page.locator('[data-testid="stSpinner"]')).to_have_count(0, timeout=120_000)

    def check(self, name: str) -> None:
        pictures = os.environ.get("CONVSWEEP_PICTURES")
        if pictures:
            self.page.screenshot(path=f"{pictures}/{name}.png", full_page=False)
        assert self.page.locator('[data-testid="stException"]').all_inner_texts() == []
        assert self.page.evaluate(CUT_OFF) == []
        assert self.complaints == []
        assert self.elsewhere == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def visiting(browser: Browser, experiments: Path, log: Path) -> Iterator[Visitor]:
    with dashboard(experiments, log) as address:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
        yield Visitor(context.new_page(), address)
        context.close()
    assert "Traceback" not in log.read_text()


def convsweep(*words: object) -> list[str]:
    return [sys.executable, "-m", "cluster.cli", *map(str, words)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """The experiments folder of a sweep on MNIST that is over, and of one on the digits of which a trial failed."""
    folder = tmp_path_factory.mktemp("browser") / "experiments"
    space = folder.with_name("sweep.yaml")
    small = "space: {model.filters: [16], model.kernel_size: [3, 5], model.blocks: [2], training.batch_size: [128]}\n"
    space.write_text(f"data: mnist\ntrials: 4\nepochs: 2\n{small}")
    shared = ("--experiments", folder, "--data-root", data_root, "--cache", folder.with_name("cache"))
    subprocess.run(convsweep("sweep", space, "--name", "mnist", *shared), check=True, stderr=subprocess.DEVNULL)
    rates = folder.with_name("rates.yaml")
    rates.write_text(
        "data: digits\ntrials: 4\nepochs: 2\npreset: none\nspace: {optimizer.name: [sgd], optimizer.learning_rate: [0.01, 10.0],"
        " optimizer.weight_decay: [0.0, 10.0], schedule.name: [constant]}\n"
    )
    subprocess.run(convsweep("sweep", rates, "--name", "digits", *shared), check=True, stderr=subprocess.DEVNULL)
    return folder


@pytest.fixture
def visitor(browser: Browser, finished: Path, tmp_path: Path) -> Iterator[Visitor]:
    with visiting(browser, finished, tmp_path / "log") as visitor:
        yield visitor


@pytest.mark.data
def test_every_page_of_a_finished_sweep_is_whole(visitor: Visitor) -> None:
    for sweep in ("mnist", "digits"):
        for page in PAGES:
            visitor.open(page, sweep)
            visitor.check(f"{sweep}-{page}")


@pytest.mark.data
def test_a_trial_is_analysed_exported_and_tried_by_clicking(visitor: Visitor, finished: Path) -> None:
    """What a reader does with the best trial, from its mistakes to a prediction."""
    page = visitor.page
    visitor.open("trial", "mnist", part="Mistakes")
    page.get_by_role("button", name="Analyse").click()
    expect(page.get_by_role("button", name="Analyse")).to_have_count(0, timeout=180_000)
    visitor.settle()
    expect(page.locator('[data-testid="stMain"] img').first).to_be_visible()
    visitor.check("analysed")
    visitor.open("export", "mnist")
    page.get_by_role("button", name="Export trial").click()
    expect(page.locator('[data-testid="stFileUploader"]')).to_be_visible(timeout=240_000)
    visitor.settle()
    picture = finished.with_name("one.png")
    Image.new("L", (28, 28)).save(picture)
    page.locator('[data-testid="stFileUploader"] input[type=file]').set_input_files(picture)
    expect(page.locator('[data-testid="stVegaLiteChart"]').first).to_be_visible(timeout=60_000)  # its probabilities
    visitor.settle()
    visitor.check("exported")
    assert len(list(finished.glob("mnist/bundles/*/model.pt2"))) == 1


def test_every_page_of_a_running_sweep_is_whole(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "experiments"
    words = convsweep(
        "sweep", "--data", "digits", "--trials", 500, "--epochs", 5, "--name", "live", "--experiments", folder
    )
    sweep = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for_trials(sweep, folder, 3)
        with visiting(browser, folder, tmp_path / "log") as visitor:
            for page in PAGES:
                visitor.open(page, "live")
                visitor.check(f"live-{page}")
            visitor.open("ranking", "live")
            seen = visitor.page.get_by_text(re.compile(r"\d+ of 500 trials have ended")).inner_text()
            expect(visitor.page.get_by_text(seen, exact=True)).to_have_count(0, timeout=60_000)  # it follows
            visitor.check("live-ranking-later")
            assert sweep.poll() is None
    finally:
        sweep.send_signal(signal.SIGINT)
        assert sweep.wait(300) == 130


def _wait_for_trials(sweep: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    where, deadline = Experiments(folder), time.monotonic() + 600  # on a busy machine Ray's processes start slowly
    while time.monotonic() < deadline:
        assert sweep.poll() is None, "the sweep ended"
        studies = Studies(where)
        if "live" in studies.names() and studies.read("live").counts["COMPLETE"] >= count:
            studies.close()
            return
        time.sleep(0.5)
    pytest.fail("no trial of the sweep has ended")
