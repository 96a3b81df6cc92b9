"""How a command ends that goes wrong: a user's mistake is one sentence and exit status 2, a failure exit status 1."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Ends the process when what is within raises; with CONVSWEEP_DEBUG in the environment, with the traceback."""
    try:
        yield
    except ValueError as error:
        _fail(error, 2)
    except (RuntimeError, OSError, ArithmeticError) as error:  # the last: a loss that is not finite
        _fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: Exception, status: int) -> None:
    if os.environ.get("CONVSWEEP_DEBUG"):
        raise error
    sys.stderr.write(f"convsweep: {error}\n")
    sys.exit(status)
