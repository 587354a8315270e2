"""Calibration and evaluation data: folders of images, arrays in files, arrays and feeds from Python."""

from typing import TYPE_CHECKING

from onnxsep.options.lazy import lazy

if TYPE_CHECKING:
    from onnxsep.data.comparing import ImageJudge
    from onnxsep.data.dataset import Dataset, check_batch, check_sampling
    from onnxsep.data.labels import AnyLabels, check_labels
    from onnxsep.data.opening import Feed, Source, open_data
    from onnxsep.data.partitioning import Partition, partition, tenth, unfitted, verification_feeds
    from onnxsep.data.preprocessing import AnyPreprocessing, Decided, Preprocessing
    from onnxsep.data.preprocessing_report import PreprocessingReport
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "onnxsep.data.comparing": ("ImageJudge",),
            "onnxsep.data.dataset": ("Dataset", "check_batch", "check_sampling"),
            "onnxsep.data.labels": ("AnyLabels", "check_labels"),
            "onnxsep.data.opening": ("Feed", "Source", "open_data"),
            "onnxsep.data.partitioning": ("Partition", "partition", "tenth", "unfitted", "verification_feeds"),
            "onnxsep.data.preprocessing": ("AnyPreprocessing", "Decided", "Preprocessing"),
            "onnxsep.data.preprocessing_report": ("PreprocessingReport",),
        },
    )

__all__ = [
    "AnyLabels",
    "AnyPreprocessing",
    "Dataset",
    "Decided",
    "Feed",
    "ImageJudge",
    "Partition",
    "Preprocessing",
    "PreprocessingReport",
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
