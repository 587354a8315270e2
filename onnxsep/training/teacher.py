"""A model in ONNX Runtime, which says what a torch module is to give."""

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from onnxsep.errors import FeedError
from onnxsep.model.io import Model
from onnxsep.running.float32 import as_float32, float32_copy, held_types
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions
from onnxsep.training.batches import Feeds
from onnxsep.training.normalize import trained_outputs

Outputs = Mapping[str, NDArray[Any]]
TeacherCall = Callable[[Feeds], Outputs]


class Teacher:
    """A model in ONNX Runtime, in float32 where the runtime lacks the model's own type (bfloat16, float64).

    Its forward passes take less than half of torch's time, and any operator and type will do.

    Raises:
        FeedError: The runtime cannot load the model.
    """

    def __init__(self, model: Model, options: RuntimeOptions) -> None:
        self._converted = bool(held_types(model))
        self._names = trained_outputs(model.proto.graph)
        self._name = "the model" if model.path is None else repr(str(model.path))
        try:
            self._runner = Runner(float32_copy(model) if self._converted else model, options)
        except CannotRun as error:
            raise FeedError(f"ONNX Runtime cannot load the model, so nothing can be tuned by it: {error}") from error

    def __call__(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """The outputs that can be trained on, by name.

        Raises:
            FeedError: The feeds do not fit.
        """
        if self._converted:
            feeds = {name: as_float32(values) for name, values in feeds.items()}
        try:
            outputs = self._runner(feeds)
        except CannotRun as error:
            raise FeedError(
                f"{self._name} cannot be run on these samples: {error}. A teacher takes the same inputs as the model:"
                " give the original of this one"
            ) from error
        return {name: outputs[name] for name in self._names if outputs[name].dtype.kind == "f"}
