"""Errors that mean something else than that a trial's configuration is bad. Imports neither torch nor Ray."""

from __future__ import annotations

OUT_OF_MEMORY, STORAGE, NO_GROUP = "out of memory", "storage", "no worker group"
"""The machine has too little memory for the trial; nothing can be written or read; there is nobody left to train."""
OVER_LIMIT = "over a limit"
"""The trial's network costs more than the sweep's constraints allow, and is not trained."""


class OverLimitError(ValueError):
    """A network costs more than it may; the words are those of the record, such as 'latency_ms 7.3 > 5'."""


def says_that_a_rank_is_lost(error: str) -> bool:
    """Whether it is what a rank says that waited for another, which has ended: gloo's words, and those of NCCL."""
    return any(words in error for words in ("closed by peer", "reset by peer", "gloo/transport", "ncclRemoteError"))


def kind_of(error: Exception | str) -> str | None:
    """OUT_OF_MEMORY, STORAGE or OVER_LIMIT for such an error, or for the text of one of the first two; None for others."""
    if isinstance(error, OverLimitError):
        return OVER_LIMIT
    text = str(error)
    # What torch says of a GPU's and of the host's memory, and Ray of a process that its monitor has ended.
    if isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "DefaultCPUAllocator: ", "running low on memory")
    ):
        return OUT_OF_MEMORY
    return STORAGE if isinstance(error, OSError) else None
