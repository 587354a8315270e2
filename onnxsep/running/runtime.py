"""Running a model: the only module that imports onnxruntime, and only when a model is run."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import EncodeError

from onnxsep.errors import MissingDependencyError, OptionError, TimeLimitError, spelled, worded
from onnxsep.model.external import is_external, set_slot, slot_of
from onnxsep.model.files import temporary_folder
from onnxsep.model.functions import too_many_calls, with_few_calls
from onnxsep.model.io import Model
from onnxsep.model.tensors import tensor_protos
from onnxsep.options.hints import check_fields
from onnxsep.running.reasons import readable_reason
from onnxsep.running.workers import OutOfTime, within

_FATAL_ONLY = 4  # the runtime's log level; errors reach the user as exceptions, in one line
_LARGEST_PROTO = 2**31 - 1  # bytes; protobuf's own limit
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
_FOLDER_KEY_SINCE = (1, 21)  # before, absolute locations do, which later versions refuse
_CPU = "CPUExecutionProvider"
TIME_LIMIT = 600.0  # seconds
_NO_ARRAYS = ("bfloat16", "float8", "float4", "int4", "int2")  # types that the Python interface cannot hand over


@dataclass(frozen=True)
class RuntimeOptions:
    """How models are run.

    Attributes:
        threads: Threads within an operator; 0 leaves the number to the runtime.
        provider: The execution provider; operators that it lacks run on the CPU.
        custom_op_libraries: Shared libraries with custom operators.
        optimize: Whether the runtime may optimise the graph (fuse, fold constants, change layouts).
        time_limit: Seconds that loading a model, or a run of it, may take; 0: any time.
    """

    threads: int = 0
    provider: str = _CPU
    custom_op_libraries: tuple[Path, ...] = ()
    optimize: bool = True
    time_limit: float = TIME_LIMIT

    def check(self) -> None:
        """Refuse what no model can be run with, before one is opened.

        Raises:
            OptionError: the provider, a custom-operator library or the number of threads cannot be used, or a value
                has the wrong type.
        """
        check_fields(self, "RuntimeOptions")
        if self.threads < 0:
            raise OptionError(f"threads must be 0 (the runtime's choice) or more, not {self.threads}")
        if self.provider != _CPU and self.provider not in (available := available_providers()):
            raise OptionError(
                f"unknown provider {self.provider!r}; the installed onnxruntime has: {', '.join(available)}"
            )
        if not 0 <= self.time_limit < float("inf"):
            raise OptionError(f"the time limit must be 0 (none) or a number of seconds, not {self.time_limit}")
        for library in self.custom_op_libraries:
            if not Path(library).is_file():
                raise OptionError(f"custom-operator library {str(library)!r} not found")


_DEFAULTS = RuntimeOptions()


class CannotRun(Exception):  # noqa: N818 - a finding about a model, which the caller reports; not always an error
    """The runtime cannot load or run this model; the message is one line that says why."""


class Runner:
    """One inference session of ONNX Runtime.

    Args:
        model: The model. Weights in files are read by the runtime itself.
        options: Threads, provider, custom operators.

    Raises:
        CannotRun: the runtime refuses the model.
        ModelLoadError: external data is missing or may not be read.
        OptionError: the provider, a custom-operator library or the number of threads cannot be used.
        MissingDependencyError: onnxruntime cannot be imported.
        TimeLimitError: it takes longer than it may.
    """

    def __init__(self, model: Model, options: RuntimeOptions = _DEFAULTS) -> None:
        if reason := too_many_calls(model.proto):
            raise CannotRun(reason)
        if (proto := with_few_calls(model.proto)) is not model.proto:
            model = replace(model, proto=proto, stored=None, pristine=False)
        ort = _onnxruntime()
        self._run_options, self._limit = ort.RunOptions, options.time_limit
        self._name = "the model" if model.path is None else repr(str(model.path))
        settings = _session_options(ort, options)
        providers = list(dict.fromkeys((options.provider, _CPU)))
        with _source(model) as (source, folder):
            if folder is not None:
                settings.add_session_config_entry(_FOLDER_KEY, folder)
            # Without enable_fallback=0 some failures are printed and tried again on another provider.
            create = partial(ort.InferenceSession, source, settings, providers=providers, enable_fallback=0)
            try:
                self._session = within(create, self._limit)
            except OutOfTime:
                raise self._out_of_time("loading") from None
            except Exception as error:  # the runtime raises a dozen unrelated classes, its own and pybind11's
                raise CannotRun(readable_reason(str(error))) from error
        self._session.disable_fallback()
        if options.provider not in self._session.get_providers():
            raise CannotRun(f"the provider {options.provider} could not be started on this machine")
        for value in (*self._session.get_inputs(), *self._session.get_outputs()):
            if any(name in value.type for name in _NO_ARRAYS):
                raise CannotRun(f"the runtime's Python interface cannot exchange {value.type} ({value.name!r})")

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model once.

        Args:
            feeds: A value for each input by name: an array in the input's own type, a list of arrays for a sequence.

        Returns:
            The outputs by name, in the model's order: an array each; where the model says so, a list (sequence),
            a dict (map) or None (an empty optional).

        Raises:
            CannotRun: the runtime raises while running, or an input is missing or does not fit.
            TimeLimitError: the run takes longer than it may.
        """
        running = self._run_options()
        running.log_severity_level = _FATAL_ONLY
        try:
            return within(lambda: self.alone(feeds, running), self._limit, partial(setattr, running, "terminate", True))
        except OutOfTime:
            raise self._out_of_time("a run of") from None

    def alone(self, feeds: Mapping[str, Any], running: Any = None) -> dict[str, Any]:
        """The same with nobody beside it: no time limit, no answer to Ctrl-C, no time lost.

        Args:
            feeds: as above.
            running: the runtime's options of this run.
        """
        names = [value.name for value in self._session.get_outputs()]
        try:
            values = self._session.run(names, dict(feeds), running)
        except Exception as error:  # see above
            raise CannotRun(readable_reason(str(error))) from error
        return dict(zip(names, values, strict=True))

    def _out_of_time(self, what: str) -> TimeLimitError:
        return TimeLimitError(
            f"{what} {self._name} takes longer than {self._limit:g} s, and was stopped; {spelled('time_limit')} gives"
            f" it more time ({worded('--time-limit 1h', 'RuntimeOptions(time_limit=3600)')}; 0: any time)"
        )


def available_providers() -> tuple[str, ...]:
    """The execution providers that the installed onnxruntime was built with."""
    return tuple(_onnxruntime().get_available_providers())


def runtime_version() -> str:
    """The version of the installed onnxruntime."""
    return str(_onnxruntime().__version__)


def version_numbers() -> tuple[int, ...]:
    """Its first two numbers, to compare."""
    return tuple(int(number) for number in runtime_version().split(".")[:2])


def _onnxruntime() -> Any:
    quiet_telemetry()
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"onnxruntime cannot be imported ({error}); install it with: pip install onnxruntime"
        ) from error
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    return onnxruntime


def quiet_telemetry() -> None:
    """To be called before onnxruntime is imported: its telemetry leaves a file (``.ses``) in the temporary folder."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _session_options(ort: Any, options: RuntimeOptions) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY
    options.check()
    if options.threads:
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
    if not options.optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for library in options.custom_op_libraries:
        try:
            # An absolute path: the system's loader would look up a bare name elsewhere.
            settings.register_custom_ops_library(str(Path(library).absolute()))
        except Exception as error:  # noqa: PERF203 - see Runner
            reason = readable_reason(str(error))
            raise OptionError(f"custom-operator library {str(library)!r} cannot be loaded: {reason}") from error
    return settings


@contextmanager
def _source(model: Model) -> Iterator[tuple[str | bytes, str | None]]:
    """What the session loads (a path or the model's bytes), and the folder of its external data."""
    external = [tensor for tensor in tensor_protos(model.proto) if is_external(tensor)]
    path = _own_file(model)
    if not external:
        yield path or _serialized(model.proto), None
        return
    data = model.data_folder()
    data.check(external)
    folder = data.path.resolve()
    if version_numbers() < _FOLDER_KEY_SINCE:
        if path is not None:
            yield path, None
            return
        with _temporary_file(_relocated(model.proto, folder, absolute=True)[0]) as path:
            yield path, None
    elif any(not _target(folder, tensor).is_relative_to(folder) for tensor in external):
        yield _relocated(model.proto, folder, absolute=False)
    else:
        yield path or _serialized(model.proto), str(folder)


@contextmanager
def _temporary_file(content: bytes) -> Iterator[str]:
    """A file for as long as a session is made of it.

    Without the path of a model, old versions of the runtime find its external data too, but fail in optimisations
    that read a weight.
    """
    with ExitStack() as stack:
        try:
            path = Path(stack.enter_context(temporary_folder()), "model.onnx")
            path.write_bytes(content)
        except OSError as error:
            raise CannotRun(f"a temporary copy of the model cannot be written: {error}") from error
        yield str(path)


def _relocated(proto: onnx.ModelProto, folder: Path, *, absolute: bool) -> tuple[bytes, str]:
    """The model with its external data where links lead: the bytes, and the folder that locations start from.

    The runtime refuses links out of the model's folder, which model hubs' caches are made of. The user allowed them,
    or ``DataFolder`` had refused them. So each location is replaced by that of the real file.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    external = [tensor for tensor in tensor_protos(changed) if is_external(tensor)]
    targets = [_target(folder, tensor) for tensor in external]
    try:
        common = os.path.commonpath([target.parent for target in targets])
    except ValueError:
        raise CannotRun("the external data lies on several drives") from None
    for tensor, target in zip(external, targets, strict=True):
        location = target if absolute else target.relative_to(common)
        set_slot(tensor, replace(slot_of(tensor), location=location.as_posix()))
    return _serialized(changed), common


def _target(folder: Path, tensor: onnx.TensorProto) -> Path:
    return (folder / slot_of(tensor).location).resolve()


def _own_file(model: Model) -> str | None:
    """The file that holds the model as it is in memory, if there is one."""
    same = model.pristine and model.stored is None
    return str(model.path) if same and model.path is not None and model.path.is_file() else None


def _serialized(proto: onnx.ModelProto) -> bytes:
    too_large = "the model is larger than 2 GB without external data, more than the runtime can load"
    try:
        data: bytes = proto.SerializeToString()
    except (EncodeError, ValueError):  # which one depends on protobuf's version
        raise CannotRun(too_large) from None
    if len(data) > _LARGEST_PROTO:
        raise CannotRun(too_large)
    return data
