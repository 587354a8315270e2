"""Calibration and evaluation data: folders of images, arrays in files, arrays and feeds from Python."""

from typing import TYPE_CHECKING

from onnxsep.options.lazy import lazy

if TYPE_CHECKING:
    from onnxsep.data.dataset import Dataset, check_batch, check_sampling
    from onnxsep.data.labels import AnyLabels, check_labels
    from onnxsep.data.opening import Feed, Source, open_data
    from onnxsep.data.partitioning import Partition, partition, tenth, unfitted, verification_feeds
    from onnxsep.data.preprocessing import AnyPreprocessing, Preprocessing
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "onnxsep.data.dataset": ("Dataset", "check_batch", "check_sampling"),
            "onnxsep.data.labels": ("AnyLabels", "check_labels"),
            "onnxsep.data.opening": ("Feed", "Source", "open_data"),
            "onnxsep.data.partitioning": ("Partition", "partition", "tenth", "unfitted", "verification_feeds"),
            "onnxsep.data.preprocessing": ("AnyPreprocessing", "Preprocessing"),
        },
    )

__all__ = [
    "AnyLabels",
    "AnyPreprocessing",
    "Dataset",
    "Feed",
    "Partition",
    "Preprocessing",
    "Source",
    "check_batch",
    "check_labels",
    "check_sampling",
    "open_data",
    "partition",
    "tenth",
    "unfitted",
    "verification_feeds",
]
