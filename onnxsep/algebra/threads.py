"""Threads of the linear algebra: one, but for large products.

A fit is thousands of small products. Threads gain little on them, and between two of them those of a BLAS wait in a
loop, some 30 ms long: they take the time of a second core, and where others use it the products wait for one another.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from threadpoolctl import ThreadpoolController, threadpool_limits

LARGE_WORK = 2**33  # multiplications, in one product or several in a row, that threads are worth it for
_state = threading.local()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, but for ``many_threads`` within, where this thread of Python has called both."""
    import scipy.linalg  # noqa: F401 - a BLAS of its own, which must be there to be limited

    with threadpool_limits(1, user_api="blas") as limits:
        before = getattr(_state, "before", None)
        _state.before = limits.get_original_num_threads()["blas"] if before is None else before
        try:
            yield
        finally:
            _state.before = before


def threads_for(work: float) -> AbstractContextManager[None]:
    """``many_threads`` where there are so many multiplications that it pays."""
    return many_threads() if work > LARGE_WORK else nullcontext()


@contextmanager
def many_threads() -> Iterator[None]:
    """As many threads as there were outside ``one_thread``, for products that take a second."""
    before = getattr(_state, "before", None)
    if before is None:
        yield
        return
    with ThreadpoolController().limit(limits=before, user_api="blas"):
        yield
