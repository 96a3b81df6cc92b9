"""What the tests share. Run them with `python -m pytest tests -q`; CONVSWEEP_DATA adds those on MNIST and CIFAR-10."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

if TYPE_CHECKING:
    from trainer.data import ImageData

# One thread per process, read when torch is imported: on a busy machine the networks of these tests are ten times
# faster so, and the order of additions does not depend on the number of cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and no deadline: the machine may be busy.
settings.register_profile("convsweep", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("convsweep")

ImageFolder = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _no_test_writes_into_the_users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for decoded data that all tests of the session share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def digits(cache: Path) -> ImageData:
    """The data set that needs no download: 1,293 images to train with, 144 to validate and 360 to test."""
    from trainer.data import DataConfig, load_data

    return load_data(DataConfig(data="digits", cache=str(cache)))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with MNIST and CIFAR-10 in torchvision's layout; a test that asks for it is marked `data`."""
    root = os.environ.get("CONVSWEEP_DATA")
    if root is None:
        pytest.skip("CONVSWEEP_DATA is not set: it names the folder with MNIST/raw and cifar-10-batches-py.")
    for needed in ("MNIST/raw", "cifar-10-batches-py"):
        if not (Path(root) / needed).is_dir():
            pytest.skip(f"CONVSWEEP_DATA is {root!r}, where {needed} is missing.")
    return Path(root)


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """A function that writes PNG images, `{"cats": 3}` into `<folder>/cats`, and returns `root`.

    The pixels of class i are 20 + 50 i to 27 + 50 i, so that a picture tells its class.
    """

    def write(
        counts: dict[str, int],
        *,
        name: str = "pictures",
        below: str = "",
        mode: str = "RGB",
        size: tuple[int, int] = (12, 10),
    ) -> Path:
        root = tmp_path / name
        rng = np.random.default_rng(0)
        for label, (folder, count) in enumerate(counts.items()):
            (root / below / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = 20 + 50 * label + rng.integers(0, 8, (size[1], size[0], 3))
                image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
                image.save(root / below / folder / f"{i:03d}.png")
        return root

    return write
