"""One process at a time runs a sweep: `python -m pytest tests/test_lease.py`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cluster import lease as leases
from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.lease import Holder, LeaseHeldError
from cluster.studies import Studies
from cluster.study import SweepStudy

LONG = 30.0


@pytest.fixture
def where(tmp_path: Path) -> Experiments:
    found = Experiments(tmp_path / "experiments")
    Studies(found, create=True).create(make_config({"name": "s", "data": "digits"}), ["a", "b"])
    return found


def study(where: Experiments) -> SweepStudy:
    return Studies(where).open("s")


def take(where: Experiments, takeover: bool = False, on_lost: Any = print) -> leases.Lease:
    return study(where).lease(takeover, on_lost)


def put(where: Experiments, holder: Holder | None) -> None:
    """Somebody's lease, as it is written."""
    study(where)._study.set_user_attr(leases.KEY, None if holder is None else asdict(holder))


def elsewhere(ago: float) -> Holder:
    return replace(Holder.me(), host="far-away", pid=4711, beat=time.time() - ago)


def test_a_second_process_is_refused_with_the_firsts_host_and_process_id(where: Experiments) -> None:
    code = (
        "import sys; from tests.test_lease import *\n"
        "try: take(Experiments(Path(sys.argv[1]))).__enter__()\n"
        "except LeaseHeldError as error: print(error)"
    )
    with take(where) as mine:
        said = subprocess.run(
            [sys.executable, "-c", code, str(where.folder)], capture_output=True, text=True, check=True
        ).stdout
    assert f"process {mine._me.pid} on {socket.gethostname()}" in said
    with take(where):
        pass  # given back


def test_the_lease_of_a_process_that_died_here_is_taken_at_once(where: Experiments) -> None:
    code = (
        "import os, sys; from tests.test_lease import *\ntake(Experiments(Path(sys.argv[1]))).__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(where.folder)], check=False).returncode == 9
    with take(where) as mine:
        assert mine.before is not None
        assert mine.before.pid != mine._me.pid


def test_a_process_id_that_was_given_to_another_process_is_not_the_holder(where: Experiments) -> None:
    put(where, replace(Holder.me(), started=Holder.me().started - 1000))
    with take(where) as mine:
        assert mine.is_mine


def test_a_process_id_means_nothing_in_another_container(where: Experiments) -> None:
    put(where, replace(Holder.me(), pid=2**22 + 1, namespace="pid:[1]"))
    with pytest.raises(LeaseHeldError), take(where):
        pass


@pytest.mark.parametrize(
    ("ago", "takeover", "taken"), [(1, False, False), (1, True, False), (100, False, False), (100, True, True)]
)
def test_one_of_another_host_is_overridden_on_request_when_it_is_silent(
    where: Experiments, ago: float, takeover: bool, taken: bool
) -> None:
    put(where, elsewhere(ago))
    if taken:
        with take(where, takeover) as mine:
            assert mine.before is not None
            assert mine.before.host == "far-away"
    else:
        hint = "--takeover" if ago > leases.STALE else "stop it there"
        with pytest.raises(LeaseHeldError, match=rf"process 4711 on far-away.*{hint}"), take(where, takeover):
            pass


def test_who_lost_the_lease_is_told_by_whom_and_does_not_give_back_what_is_not_its_own(
    where: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.01)
    told, said = threading.Event(), list[str]()

    def on_lost(reason: str) -> None:
        said.append(reason)
        told.set()

    with take(where, on_lost=on_lost) as mine:
        assert mine.is_mine
        put(where, elsewhere(0))
        assert told.wait(LONG)
        assert not mine.is_mine
    assert "process 4711 on far-away" in said[0]
    with pytest.raises(LeaseHeldError, match="far-away"), take(where):
        pass


def test_the_heart_beats_while_the_lease_is_held(where: Experiments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.01)

    def beat() -> float:
        return float(study(where)._study.user_attrs[leases.KEY]["beat"])

    with take(where):
        first, until = beat(), time.time() + LONG
        while beat() == first:
            assert time.time() < until
    assert study(where)._study.user_attrs[leases.KEY] is None


def test_of_many_at_once_one_gets_it(where: Experiments) -> None:
    many = [take(where) for _ in range(8)]
    begin, got = threading.Barrier(len(many)), list[leases.Lease]()

    def run(one: leases.Lease) -> None:
        begin.wait(LONG)
        try:
            one._take()
            got.append(one)
        except LeaseHeldError:
            pass

    threads = [threading.Thread(target=run, args=(one,)) for one in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert len(got) == 1


@pytest.mark.parametrize(
    ("holder", "state"),
    [
        (lambda: None, "RUNNING"),
        (Holder.me, "RUNNING"),
        (lambda: elsewhere(1), "RUNNING"),
        (lambda: elsewhere(100), "INTERRUPTED"),
        (lambda: replace(Holder.me(), started=1.0), "INTERRUPTED"),
    ],
)
def test_a_sweep_whose_process_is_gone_is_interrupted(
    where: Experiments, holder: Callable[[], Holder | None], state: str
) -> None:
    mine = study(where)
    mine.begin_run(mine.config, groups=1)
    put(where, holder())
    assert mine.read().state == state
    assert Studies(where).summaries()[0].state == state
    assert json.loads(json.dumps(Studies(where).summaries()[0].to_json()))["state"] == state
