# SPDX-License-Identifier: Apache-2.0
"""PixelContrastLoss in transformers' Trainer, with SegformerForSemanticSegmentation.

A subclass of the model has a projection head over the hidden states of its four stages; a subclass
of the Trainer adds the contrast of these embeddings to the model's own loss. The model is small and
random, so that nothing is downloaded: `Segformer.from_pretrained("nvidia/mit-b0", num_labels=19)`
starts from ImageNet's weights, with new heads. Needs `pip install accelerate`, as the Trainer does.

    python examples/transformers_trainer.py
"""

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    EvalPrediction,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    TrainingArguments,
)

from pipa_fast.data import CLASSES, IGNORE_INDEX, Sample, Streets
from pipa_fast.evaluation.metrics import ConfusionMatrix
from pipa_fast.losses import PixelContrastLoss


class Segformer(SegformerForSemanticSegmentation):
    """SegFormer with embeddings [B, 32, H/4, W/4], made in `forward`, where DDP sees them."""

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__(config)
        self.projection = nn.Conv2d(sum(config.hidden_sizes), 32, 1)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        kwargs["output_hidden_states"] = True
        outputs = super().forward(pixel_values, labels=labels, **kwargs)
        size = outputs.hidden_states[0].shape[2:]
        stages = [F.interpolate(s, size=size, mode="bilinear") for s in outputs.hidden_states]
        outputs["embeddings"] = self.projection(torch.cat(stages, 1))
        return outputs


class ContrastTrainer(Trainer):
    """Adds weight * contrast to the model's loss, and logs the contrast."""

    weight = 0.1
    loss_is_scaled_for_ga = False  # both are means of a batch: accumulated ones are divided

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.contrast = PixelContrastLoss(temperature=0.1, num_anchors=1024).to(self.args.device)
        self.terms: list[Tensor] = []

    def compute_loss(self, model: Any, inputs: dict, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        loss = outputs.loss
        if model.training:
            term = self.contrast(outputs.embeddings, inputs["labels"], outputs.logits.argmax(1))
            loss = loss + self.weight * term
            self.terms.append(term.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.terms and "loss" in logs:  # read here, so that no step waits for the device
            logs["contrast"] = float(torch.stack(self.terms).mean())
            self.terms.clear()
        super().log(logs, *args, **kwargs)


def collate(scenes: Sequence[Sample]) -> dict[str, Tensor]:
    images = torch.stack([torch.tensor(s.image) for s in scenes]).permute(0, 3, 1, 2) / 255
    labels = torch.stack([torch.tensor(s.label) for s in scenes]).long()
    return {"pixel_values": (images - 0.45) / 0.25, "labels": labels}


def miou(found: EvalPrediction) -> dict[str, float]:
    truth = torch.from_numpy(found.label_ids)
    logits = F.interpolate(torch.from_numpy(found.predictions), truth.shape[1:], mode="bilinear")
    confusion = ConfusionMatrix(len(CLASSES))
    confusion.update(logits.argmax(1), truth)
    return {"miou": 100 * confusion.miou(Streets.eval_classes)}


def main(argv: Sequence[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    settings = {"max_steps": options.steps, "logging_steps": max(1, options.steps // 4)}
    settings |= {"learning_rate": 2e-3, "lr_scheduler_type": "constant", "seed": options.seed}
    settings |= {"per_device_train_batch_size": 4, "save_strategy": "no", "report_to": []}
    settings |= {"dataloader_pin_memory": torch.cuda.is_available()}  # else it warns
    settings |= {"remove_unused_columns": False}  # a scene is no dictionary until it is collated
    sizes = {"hidden_sizes": [16, 32, 64, 96], "decoder_hidden_size": 64, "depths": [1, 1, 1, 1]}
    sizes |= {"num_attention_heads": [1, 2, 4, 6], "num_labels": len(CLASSES)}
    model = Segformer(SegformerConfig(**sizes, semantic_loss_ignore_index=IGNORE_INDEX))
    with tempfile.TemporaryDirectory() as folder:
        trainer = ContrastTrainer(
            model,
            TrainingArguments(folder, disable_tqdm=True, **settings),
            data_collator=collate,
            train_dataset=Streets("synthetic", "train"),
            eval_dataset=Streets("synthetic", "val")[:20],
            compute_metrics=miou,
        )
        trainer.train()
        trainer.evaluate(ignore_keys=["hidden_states", "attentions", "embeddings"])
    return trainer.state.log_history  # the Trainer has printed it


if __name__ == "__main__":
    main()
