"""Compression in several steps: recipes, pipelines, and what makes them repeatable."""

from typing import TYPE_CHECKING

from onnxsep.options.lazy import lazy

if TYPE_CHECKING:
    from onnxsep.compression.api import CompressResult, Pipeline
    from onnxsep.compression.compress import compress
    from onnxsep.compression.recipe import Recipe, read_recipe, shipped_recipes
    from onnxsep.compression.report import CompressReport
    from onnxsep.compression.step import Step
    from onnxsep.compression.steps import FineTune, Plan, Prune, Quantize, Rewrite
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "onnxsep.compression.api": ("CompressResult", "Pipeline"),
            "onnxsep.compression.compress": ("compress",),
            "onnxsep.compression.recipe": ("Recipe", "read_recipe", "shipped_recipes"),
            "onnxsep.compression.report": ("CompressReport",),
            "onnxsep.compression.step": ("Step",),
            "onnxsep.compression.steps": ("FineTune", "Plan", "Prune", "Quantize", "Rewrite"),
        },
    )

__all__ = [
    "CompressReport",
    "CompressResult",
    "FineTune",
    "Pipeline",
    "Plan",
    "Prune",
    "Quantize",
    "Recipe",
    "Rewrite",
    "Step",
    "compress",
    "read_recipe",
    "shipped_recipes",
]
