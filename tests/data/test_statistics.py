# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from pipa_fast.data.datasets import build_dataset
from pipa_fast.data.statistics import PER_CLASS, PER_IMAGE, files_of, known_counts, read_counts
from tests.data.published import make

# As DAFormer's converter writes them: paths of the converted labels, ids as strings.
RECORDS = [
    {"0": 6000, "13": 2000, "file": "data/gta/labels/00000_labelTrainIds.png"},
    {"0": 1000, "16": 1000, "file": "data/gta/labels/00001_labelTrainIds.png"},
]


def test_daformers_file_is_read_as_it_is(tmp_path):
    root = make("gta5", tmp_path)
    (root / PER_IMAGE).write_text(json.dumps(RECORDS[::-1]))
    counts = known_counts(build_dataset("gta5", "train", root))
    assert counts.shape == (2, 255)
    assert counts[:, [0, 13, 16]].tolist() == [[6000, 2000, 0], [1000, 0, 1000]]


def test_what_is_written_is_read_again(tmp_path):
    counts = np.zeros((2, 255), np.int64)
    counts[0, [0, 13]], counts[1, [0, 16]] = (6000, 2000), (1000, 1000)
    labels = [r["file"] for r in RECORDS]
    texts = files_of(counts, labels)
    assert json.loads(texts[PER_IMAGE]) == RECORDS
    assert json.loads(texts[PER_CLASS]) == {
        "0": [[labels[0], 6000], [labels[1], 1000]],
        "13": [[labels[0], 2000]],
        "16": [[labels[1], 1000]],
    }
    (tmp_path / PER_IMAGE).write_text(texts[PER_IMAGE])
    assert (read_counts(tmp_path / PER_IMAGE, ["00000", "00001"], "gta5") == counts).all()


def test_missing_and_foreign_statistics_are_told(tmp_path):
    root = make("gta5", tmp_path)
    dataset = build_dataset("gta5", "train", root)
    with pytest.raises(ValueError, match="prepare gta5"):
        known_counts(dataset)
    (root / PER_IMAGE).write_text(json.dumps(RECORDS[:1]))
    with pytest.raises(ValueError, match="1 are not in it"):
        known_counts(dataset)
    for text in ("no json", '{"a": 1}', '[{"x": 1, "file": "a"}]', "[{}]"):
        (root / PER_IMAGE).write_text(text)
        with pytest.raises(ValueError, match="no list of class counts"):
            known_counts(dataset)
