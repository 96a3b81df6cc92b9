"""The programs of the package `dashboard`, which nothing here imports: each takes the place of this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cluster.experiments import Experiments


def become(program: str, options: Sequence[str], experiments: Experiments) -> NoReturn:
    """Run `python -m PROGRAM OPTIONS` on these experiments, instead of what this process would still have done."""
    settings = {
        "CONVSWEEP_EXPERIMENTS": str(experiments.folder),
        "CONVSWEEP_STUDY_STORAGE": experiments.study_storage,  # not an argument: those can be seen, and it may hold a password
        "CONVSWEEP_STORAGE_PATH": experiments.storage_path,
    }
    os.environ.update({name: value for name, value in settings.items() if value is not None})
    os.execv(sys.executable, [sys.executable, "-m", program, *options])
