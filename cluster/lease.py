"""Who runs a sweep: one process at a time, written into the study with a heartbeat. Imports no Ray.

A lease is taken, kept and given back by comparing and setting one row, so that of two who want it one gets it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any

import psutil
import sqlalchemy as sql
from optuna.storages._rdb import models

KEY = "lease"
BEAT = 5.0
"""Seconds between two heartbeats."""
STALE = 60.0
"""A lease without a heartbeat for so many seconds is that of a process that is gone."""

_Attribute: Any = models.StudyUserAttributeModel


@dataclass(frozen=True)
class Holder:
    """The process that has the lease: its `host`, process id and start (seconds since 1970), and when its heart last beat.

    `namespace` is where its process id counts: containers may share a host's name.
    """

    host: str
    namespace: str
    pid: int
    started: float
    beat: float
    token: str

    @classmethod
    def me(cls) -> Holder:
        """This process, now."""
        process = psutil.Process()
        return cls(
            socket.gethostname(),
            _namespace(),
            process.pid,
            process.create_time(),
            time.time(),
            uuid.uuid4().hex,
        )

    @classmethod
    def from_attribute(cls, value: Any) -> Holder | None:
        """Who has the lease by the study's attribute; None when nobody has."""
        return cls(**value) if value else None

    def is_gone(self) -> bool:
        """Whether the process has certainly ended: on this machine it can be looked for."""
        if (self.host, self.namespace) != (socket.gethostname(), _namespace()):
            return False
        try:
            # Within a second: the system's clock, by which starts are told, may be corrected.
            return abs(psutil.Process(self.pid).create_time() - self.started) > 1
        except psutil.NoSuchProcess:
            return True

    def is_silent(self) -> bool:
        """Whether its heart has not beaten for so long that it should be gone."""
        return time.time() - self.beat > STALE

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 -- what it points to is no path
    except OSError:  # not Linux: process ids count on the whole machine
        return ""


class LeaseHeldError(ValueError):
    """Another process runs the sweep."""


class Lease:
    """The right to run the sweep with this study. A context: it is taken with it and given back after it.

    Raises LeaseHeldError when another process has it that may be alive; one that has been silent is put out of it with `takeover`.
    `on_lost` is called, in another thread, when somebody else has done that to this one. `before` is who had it last and did not
    give it back.
    """

    def __init__(
        self, engine: sql.Engine, study_id: int, name: str, takeover: bool, on_lost: Callable[[str], None]
    ) -> None:
        self._engine, self._study_id, self._name = engine, study_id, name
        self._takeover, self._on_lost = takeover, on_lost
        self.before: Holder | None = None
        self._me = Holder.me()
        self._text: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    @property
    def is_mine(self) -> bool:
        """Whether this process still has it, as far as it knows."""
        return self._text is not None

    def __enter__(self) -> Lease:
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._text is not None:
            with contextlib.suppress(sql.exc.SQLAlchemyError):  # it goes stale by itself
                self._set(self._text, "null")

    def _take(self) -> None:
        while True:
            text = self._read()
            holder = Holder.from_attribute(json.loads(text)) if text else None
            if holder is not None and not holder.is_gone():
                self._refuse(holder)
            self._me = replace(self._me, beat=time.time())
            mine = json.dumps(asdict(self._me))
            if self._set(text, mine):
                self._text, self.before = mine, holder
                return

    def _refuse(self, holder: Holder) -> None:
        """Raise LeaseHeldError, unless the holder is silent and is to be put out."""
        ago = max(0.0, time.time() - holder.beat)
        if not holder.is_silent():
            raise LeaseHeldError(
                f"Sweep {self._name!r} is being run by {holder}, which was heard of {ago:.0f} s ago. Wait until it has ended, or stop "
                f"it there; one that is dead can be overridden {STALE:.0f} s after it was last heard of."
            )
        if not self._takeover:
            raise LeaseHeldError(
                f"Sweep {self._name!r} was being run by {holder}, which was last heard of {ago:.0f} s ago. If it is dead: "
                f"convsweep resume {self._name} --takeover"
            )

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(sql.exc.SQLAlchemyError):  # a database that is away for a while
                next_text = json.dumps(asdict(replace(self._me, beat=time.time())))
                if self._set(self._text, next_text):
                    self._text = next_text
                    continue
                found = self._read()
                holder = Holder.from_attribute(json.loads(found)) if found else None
                if holder is not None and holder.token == self._me.token:
                    self._text = found  # the answer to the last beat was lost on its way
                    continue
                self._text = None
                self._on_lost(f"Another has taken over sweep {self._name!r}: {holder or 'it has ended by now'}.")
                return

    def _read(self) -> str | None:
        here = (_Attribute.study_id == self._study_id) & (_Attribute.key == KEY)
        with self._engine.connect() as connection:
            found: str | None = connection.execute(sql.select(_Attribute.value_json).where(here)).scalar_one_or_none()
        return found

    def _set(self, before: str | None, after: str) -> bool:
        """Write `after` if `before` is there still; whether it was."""
        table = _Attribute.__table__
        with self._engine.begin() as connection:
            if before is None:
                try:
                    connection.execute(table.insert().values(study_id=self._study_id, key=KEY, value_json=after))
                except sql.exc.IntegrityError:  # another was faster
                    connection.rollback()
                    return False
                return True
            here = (table.c.study_id == self._study_id) & (table.c.key == KEY) & (table.c.value_json == before)
            return connection.execute(table.update().where(here).values(value_json=after)).rowcount == 1
