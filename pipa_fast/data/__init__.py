# SPDX-License-Identifier: Apache-2.0
"""Images and labels: the embedded `streets` pair, and what turns scenes into batches."""

from .datasets import DATASETS, Dataset, build_dataset
from .labels import CLASSES, IGNORE_INDEX, PALETTE
from .sample import Sample
from .streets import Streets, render

__all__ = [
    "CLASSES",
    "DATASETS",
    "IGNORE_INDEX",
    "PALETTE",
    "Dataset",
    "Sample",
    "Streets",
    "build_dataset",
    "render",
]
