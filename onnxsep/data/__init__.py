"""Calibration and evaluation data: folders of images, arrays in files, arrays and feeds from Python."""

from onnxsep.data.dataset import Dataset, Feed, Source, check_batch, check_sampling, open_data
from onnxsep.data.labels import check_labels
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
