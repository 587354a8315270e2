"""Nothing on standard output from libraries in C: HiGHS prints a line for developers now and then, amid a report."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_STDOUT = 1


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, what C writes to standard output is lost; what Python has written before is not."""
    with suppress(OSError, ValueError, AttributeError):  # a stream that is closed, or none
        sys.stdout.flush()
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # there is no standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        _flush()
        os.dup2(nowhere, _STDOUT)
        yield
    finally:
        _flush()
        os.dup2(kept, _STDOUT)
        os.close(nowhere)
        os.close(kept)


def _flush() -> None:
    """Let C write what it holds back, where its library can be reached."""
    with suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).fflush(None)
