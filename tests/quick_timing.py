"""Loaded by a worker of a cluster: timing there takes next to no time."""

from latency_models import QUICK

from onnxsep.planner import latency, timings

latency.PIECES = latency.SHARES = timings.THOROUGH = QUICK
