"""What the benchmarks found, one JSON file per benchmark in docs/benchmarks/: written by each, read by `bench.report`."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs/benchmarks"
_PACKAGES = ("ray", "torch", "optuna", "streamlit")


def save(name: str, found: Any, folder: Path = FOLDER) -> None:
    """Write what the benchmark `name` found, with the machine, the versions and the day."""
    folder.mkdir(exist_ok=True)
    content = {"machine": machine(), "versions": versions(), "day": datetime.date.today().isoformat(), "found": found}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def load(folder: Path = FOLDER) -> dict[str, Any]:
    """What was saved, by the benchmark's name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def machine() -> str:
    """The processor, its cores, what it multiplies with, and the memory."""
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.partition(": ")[2] for line in facts.splitlines() if line.startswith("model name")), "")
    flags = next((line.split() for line in facts.splitlines() if line.startswith("flags")), [])
    best = next((f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in flags), "no AVX2")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model or platform.processor()}, {os.cpu_count()} cores ({best}), {memory:.0f} GiB"


def versions() -> dict[str, str]:
    """Python's and the packages' versions."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}
