# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer adds the contrast, trains the projection, and scores."""

import pytest

from tests.examples.load import load

pytest.importorskip("accelerate")


def test_trainer_logs_and_scores():
    log = load("transformers_trainer").main(["--steps", "8"])
    steps = [entry for entry in log if "contrast" in entry]
    assert len(steps) == 4
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert 0 < next(entry for entry in log if "eval_miou" in entry)["eval_miou"] <= 100


def test_loss_is_the_models_and_the_contrast(tmp_path):
    example = load("transformers_trainer")
    sizes = {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    config = example.SegformerConfig(**sizes, decoder_hidden_size=16, num_labels=19)
    config.semantic_loss_ignore_index = 255
    model = example.Segformer(config)
    arguments = example.TrainingArguments(tmp_path, report_to=[])
    trainer = example.ContrastTrainer(model, arguments)
    inputs = example.collate(example.Streets("synthetic", "train")[:2])
    loss, outputs = trainer.compute_loss(model.train(), inputs, return_outputs=True)
    assert outputs.embeddings.shape == (2, 32, 32, 64)
    term = trainer.terms[0]
    assert float(loss.detach()) == pytest.approx(float(outputs.loss.detach() + 0.1 * term))
    loss.backward()
    assert float(model.projection.weight.grad.abs().sum()) > 0
    assert (
        float(trainer.compute_loss(model.eval(), inputs).detach()) > 0 and len(trainer.terms) == 1
    )
