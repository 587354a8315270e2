"""Fitting factors to calibration data: walking the network, sampling what its Convs read, fitting, recording."""

from onnxsep.calibration.api import INITS, Fitting, fit_plan, opened, tune_result
from onnxsep.calibration.statistics_file import STATISTICS

__all__ = ["INITS", "STATISTICS", "Fitting", "fit_plan", "opened", "tune_result"]
