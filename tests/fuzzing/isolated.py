"""Examples in child processes: an example that aborts, hangs or eats the memory is a finding, and not the end."""

import faulthandler
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

MEMORY = 6 << 30  # bytes of address space


def isolated(example: Callable[[], None], folder: Path, seconds: float) -> str:
    """Run an example in a forked child.

    Args:
        example: Raises what is wrong.
        folder: Where the child's streams go, and where it works.
        seconds: It may take so long.

    Returns:
        What is wrong; "" where nothing is.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _run(example, folder)
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"it hangs: no end after {seconds:.0f} s"
        time.sleep(0.005)
    said = (folder / "said.txt").read_text(errors="replace").strip()
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)}: {said[-600:]}"
    return (folder / "found.txt").read_text() if os.WEXITSTATUS(status) else ""


def _run(example: Callable[[], None], folder: Path) -> None:
    """The child: it never returns, whatever happens, for it would go on as if it were its parent."""
    try:
        said = (folder / "said.txt").open("w")
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        faulthandler.enable(said)
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        memory = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        example()
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        text = f"{type(error).__name__} at {where}: {error}"
        if not isinstance(error, AssertionError):
            text += "\n" + traceback.format_exc()
        (folder / "found.txt").write_text(text)
        os._exit(1)
    os._exit(0)
