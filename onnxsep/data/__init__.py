"""Calibration and evaluation data: folders of images, arrays in files, arrays and feeds from Python."""

from onnxsep.data.dataset import Dataset, check_batch, check_sampling
from onnxsep.data.labels import check_labels
from onnxsep.data.opening import Feed, Source, open_data
from onnxsep.data.preprocessing import AnyPreprocessing, Preprocessing

__all__ = [
    "AnyPreprocessing",
    "Dataset",
    "Feed",
    "Preprocessing",
    "Source",
    "check_batch",
    "check_labels",
    "check_sampling",
    "open_data",
]
