# SPDX-License-Identifier: Apache-2.0
"""Labels of cells: the most frequent class where it fills enough of a cell, else none."""

import pytest
import torch

from bench.peers.downscale_labels import planes
from pipa_fast import ops
from pipa_fast.reference.downscale_labels import downscale_labels as reference


def label_map(images=2, height=24, width=32, classes=5):
    coarse = torch.randint(0, classes + 1, (images, height // 4, width // 4))
    labels = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    noise = torch.rand(labels.shape) < 0.2
    labels = torch.where(noise, torch.randint(0, classes, labels.shape), labels)
    return torch.where(labels == classes, 255, labels)


@pytest.mark.parametrize("stride", [1, 2, 8])
@pytest.mark.parametrize("min_ratio", [0.0, 0.3, 0.55, 0.75, 1.0])
def test_labels_are_those_of_the_loop(stride, min_ratio):
    labels, settings = label_map(), {"stride": stride, "num_classes": 5, "min_ratio": min_ratio}
    found = ops.downscale_labels(labels, **settings)
    assert found.dtype == torch.int64 and torch.equal(found, reference(labels, **settings))
    assert torch.equal(found, planes(labels, **settings)), "as the lineage's"


@pytest.mark.parametrize(
    ("cell", "min_ratio", "label"),
    [
        ([3, 3, 3, 1], 0.75, 3),
        ([3, 3, 1, 1], 0.75, 255),
        ([3, 3, 1, 1], 0.5, 1),  # the lowest of equal ones
        ([255, 255, 255, 1], 0.0, 255),  # mostly unlabelled
        ([255, 255, 1, 1], 0.5, 1),
        ([255] * 4, 0.0, 255),
        ([7, -1, 19, 7], 0.5, 255),  # not among five classes
    ],
)
def test_one_cell(cell, min_ratio, label):
    labels = torch.tensor(cell).view(1, 2, 2)
    settings = {"stride": 2, "num_classes": 5, "min_ratio": min_ratio}
    assert ops.downscale_labels(labels, **settings).item() == label
    assert reference(labels, **settings).item() == label


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_integer_dtypes_and_another_ignore_index(dtype):
    labels = label_map()
    found = ops.downscale_labels(labels, stride=4, num_classes=5)
    assert torch.equal(ops.downscale_labels(labels.to(dtype), stride=4, num_classes=5), found)
    within = ops.downscale_labels(labels, stride=4, num_classes=5, ignore_index=2)
    assert torch.equal(within, reference(labels, stride=4, num_classes=5, ignore_index=2))
    assert (within != 255).all(), "ignored cells have the given index"


def test_empty():
    for shape in ((0, 8, 8), (2, 0, 8)):
        found = ops.downscale_labels(torch.zeros(shape).long(), stride=4, num_classes=3)
        assert found.shape == (shape[0], shape[1] // 4, 2)


def test_compile():
    labels = label_map()

    def call(labels):
        return ops.downscale_labels(labels, stride=8, num_classes=5)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(labels), call(labels))


def test_compile_leaves_the_stride_open():
    labels = label_map()
    compiled = torch.compile(ops.downscale_labels, fullgraph=True, backend="aot_eager")
    for stride in (8, 4, 2):
        found, expected = (
            f(labels, stride=stride, num_classes=5) for f in (compiled, ops.downscale_labels)
        )
        assert torch.equal(found, expected)


def test_bad_arguments():
    labels, good = label_map(), {"stride": 8, "num_classes": 5}
    for name, given, changed in (
        ("labels", labels[0], {}),
        ("labels", labels.float(), {}),
        ("labels", labels, {"stride": 5}),
        ("stride", labels, {"stride": 0}),
        ("num_classes", labels, {"num_classes": 0}),
        ("min_ratio", labels, {"min_ratio": 1.5}),
    ):
        with pytest.raises(ValueError, match=name):
            ops.downscale_labels(given, **(good | changed))
