"""Sweeps as jobs on a cluster's head: they go on when the machine that they were submitted from goes, and have the sweep's name."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import requests

SECONDS_BETWEEN_TRIES = 5.0
STOP_PATIENCE = 120.0


class Jobs:
    """The jobs of the cluster whose dashboard is at `address`.

    Every method raises ValueError when nobody answers there, or nobody whom the token convinces.
    """

    def __init__(self, address: str) -> None:
        _show_token_if_asked(address)
        from ray.job_submission import JobSubmissionClient

        try:
            self._client = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError) as error:
            raise ValueError(
                f"No cluster takes jobs at {address} ({str(error).strip().splitlines()[0]}). `ray dashboard CLUSTER.yaml` in another "
                "terminal opens the way to its head; a cluster that asks for a token takes it from ~/.ray/auth_token."
            ) from error

    def submit(self, name: str, words: Sequence[str], sweep_file: str | None = None) -> str:
        """Start `convsweep WORDS...` on the head, with the text of a sweep file on its standard input; gives the job's id."""
        command = shlex.join(["convsweep", *words])
        if sweep_file is not None:
            end = f"END-{uuid.uuid4().hex}"  # no line of the file's own
            command += f" <<'{end}'\n{sweep_file}\n{end}\n"
        taken = {job.submission_id for job in self._all()}
        tries = (f"{name}-{number}" if number > 1 else name for number in range(1, len(taken) + 2))
        free = next(one for one in tries if one not in taken)
        return str(self._client.submit_job(entrypoint=command, submission_id=free, metadata={"sweep": name}))

    def newest(self, name: str) -> str:
        """The id of the last job of that sweep. Raises ValueError when there is none."""
        jobs = [job for job in self._all() if (job.metadata or {}).get("sweep") == name]
        if not jobs:
            known = sorted({job.metadata["sweep"] for job in self._all() if "sweep" in (job.metadata or {})})
            there = f"There are jobs of {', '.join(known)}." if known else "There are none."
            raise ValueError(f"No job of this cluster is of a sweep {name!r}. {there}")
        return str(max(jobs, key=lambda job: job.start_time or 0).submission_id)

    def status(self, job: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return str(self._client.get_job_status(job))

    def follow(self, job: str, write: Callable[[str], None]) -> str:
        """Write what the job prints, and has printed, until it ends; gives its last status. A connection that breaks is made again."""
        followed, is_told = _Followed(write), False
        while True:
            try:
                asyncio.run(self._follow(job, followed))
                if self._client.get_job_status(job).is_terminal():
                    return self.status(job)
            except (OSError, RuntimeError, requests.RequestException, aiohttp.ClientError) as error:
                if any(f"status code {code}" in str(error) for code in (401, 403, 404)):
                    raise ValueError(f"The cluster has no job {job}, or does not let us see it: {error}") from error
                if not is_told:  # the laptop has slept, or the tunnel is gone for a while
                    sys.stderr.write(f"The cluster does not answer ({error}); trying again until it does.\n")
                    is_told = True
            time.sleep(SECONDS_BETWEEN_TRIES)

    async def _follow(self, job: str, followed: _Followed) -> None:
        """Each connection tells all from the start."""
        seen = 0
        async for text in self._client.tail_job_logs(job):
            seen += len(text)
            followed.up_to(seen, text)

    def stop(self, job: str) -> str:
        """End the job as Ctrl-C would, and wait for its end; gives its last status."""
        self._client.stop_job(job)
        deadline = time.monotonic() + STOP_PATIENCE
        while not self._client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.5)
        return self.status(job)

    def _all(self) -> list[Any]:
        return [job for job in self._client.list_jobs() if job.submission_id]


class _Followed:
    """What of a job's output has been written."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._written = write, 0

    def up_to(self, seen: int, text: str) -> None:
        """`text` is the end of the first `seen` characters: write what is new of it."""
        if seen > self._written:
            self._write(text[self._written - seen :])
            self._written = seen


def _show_token_if_asked(address: str) -> None:
    """Ray shows a token only when told to, and asks for none where RAY_AUTH_MODE is not set on the cluster."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/authentication_mode", timeout=10) as answer:
            mode = json.load(answer).get("authentication_mode", "disabled")
    except (OSError, ValueError):  # nobody there, or somebody else: said by whoever connects
        return
    os.environ["RAY_AUTH_MODE"] = mode
