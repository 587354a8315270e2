"""The words that training is asked with."""

from typing import Literal

Augmentation = Literal["auto", "none", "crop", "flip", "crop,flip"]
BatchNorm = Literal["train", "frozen", "insert"]
Optimizer = Literal["sgd", "adam"]
Precision = Literal["float32", "bfloat16"]
TeacherTerm = Literal["outputs", "soft"]
