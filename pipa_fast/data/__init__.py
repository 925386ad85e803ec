# SPDX-License-Identifier: Apache-2.0
"""Images and labels: the embedded `streets` pair, and what turns scenes into batches."""

from pipa_fast.data.datasets import DATASETS, Dataset, build_dataset
from pipa_fast.data.labels import CLASSES, IGNORE_INDEX, PALETTE
from pipa_fast.data.sample import Sample
from pipa_fast.data.streets import Streets, render

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
