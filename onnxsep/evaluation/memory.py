"""Peak memory: of a fresh process that loads one model and runs it once.

A process of its own, because a peak never falls again: what other models, and this command, needed must not count.
"""

import pickle
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from onnxsep.errors import OnnxsepError
from onnxsep.evaluation.report import Memory
from onnxsep.model.external import is_external
from onnxsep.model.files import temporary_folder
from onnxsep.model.io import Model, load
from onnxsep.model.saving import save
from onnxsep.model.tensors import tensor_protos
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions, available_providers

# Isolated: the process takes its modules from the folders that this one has, and none from the current folder.
_START = "import sys; sys.path[:] = sys.argv[1:]; from onnxsep.evaluation.memory import main; main()"


def measure_memory(model: Model, feed: Mapping[str, np.ndarray], options: RuntimeOptions) -> Memory:
    """Run a model once in a process of its own.

    Args:
        model: The model. One that is not as it lies in its file is written to a temporary one.
        feed: Its inputs.
        options: How to run it.

    Returns:
        The peak; or, where the system does not tell it or the process fails, the reason.
    """
    if _peak() is None:
        return Memory(reason=f"peak memory cannot be measured on this system ({sys.platform})")
    if not sys.executable:
        return Memory(reason="peak memory cannot be measured: where the Python interpreter lies is not known")
    try:
        with ExitStack() as stack:
            path = model.path
            if not model.pristine or model.stored is not None or path is None:
                folder = stack.enter_context(temporary_folder())
                path = Path(folder, "model.onnx")
                save(replace(model, stored=None, pristine=False), path)
            external = any(map(is_external, tensor_protos(model.proto)))
            task = (path.absolute(), external, model.follow_links, _absolute(options), dict(feed))
            done = subprocess.run(
                [sys.executable, "-I", "-c", _START, *sys.path],
                input=pickle.dumps(task),
                capture_output=True,
                check=False,
            )
    except (OSError, OnnxsepError) as error:
        return Memory(reason=f"peak memory cannot be measured: {error}")
    return memory_of(done)


def _absolute(options: RuntimeOptions) -> RuntimeOptions:
    libraries = tuple(Path(library).absolute() for library in options.custom_op_libraries)
    return replace(options, custom_op_libraries=libraries)


def memory_of(done: subprocess.CompletedProcess[bytes]) -> Memory:
    """What the measured process printed, or why it printed nothing."""
    lines = done.stdout.decode(errors="replace").splitlines()  # custom operators may print too; ours is the last
    if done.returncode < 0:
        return Memory(reason=f"the process that was to measure it was ended by signal {-done.returncode}")
    if done.returncode or not lines:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        return Memory(reason=f"the process that was to measure it failed: {last}")
    return Memory.model_validate_json(lines[-1])


def main() -> None:
    """The process that is measured: a task on standard input, the memory in JSON as the last line of the output."""
    # From the process that started this one, over a pipe: no one else can have written it.
    path, external, follow_links, options, feed = pickle.load(sys.stdin.buffer)
    available_providers()  # imports the runtime
    before = _peak()
    try:
        # The runtime reads the file itself; the proto is needed only to find its external data.
        model = load(path, follow_links=follow_links) if external else Model(onnx.ModelProto(), path, pristine=True)
        Runner(model, options)(feed)
    except (CannotRun, OnnxsepError) as error:
        found = Memory(reason=f"in a process of its own the model does not run: {error}")
    else:
        found = Memory(peak_bytes=_peak(), before_bytes=before)
    print("", found.model_dump_json(), sep="\n", flush=True)


def _peak() -> int | None:
    """Largest resident memory of this process so far, in bytes; None where the system does not tell."""
    try:
        # Not ru_maxrss on Linux: a new process inherits it from the one that started it.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    if sys.platform != "darwin":
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there
