"""Compression in several steps: recipes, pipelines, and what makes them repeatable."""

from onnxsep.compression.api import CompressResult, Pipeline, compress
from onnxsep.compression.recipe import Recipe, read_recipe, shipped_recipes
from onnxsep.compression.report import CompressReport
from onnxsep.compression.step import Step
from onnxsep.compression.steps import FineTune, Prune, Quantize, Rewrite

__all__ = [
    "CompressReport",
    "CompressResult",
    "FineTune",
    "Pipeline",
    "Prune",
    "Quantize",
    "Recipe",
    "Rewrite",
    "Step",
    "compress",
    "read_recipe",
    "shipped_recipes",
]
