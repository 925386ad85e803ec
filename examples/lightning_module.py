# SPDX-License-Identifier: Apache-2.0
"""PixelContrastLoss in a LightningModule, with Lightning's Trainer around it.

The contrast is a submodule: it follows to the device, and its count of calls, which the draw of
anchors depends on, is in the checkpoints. Needs `pip install lightning`.

    python examples/lightning_module.py
"""

import argparse
from collections.abc import Sequence
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipa_fast.data import CLASSES, IGNORE_INDEX, Sample, Streets
from pipa_fast.evaluation.metrics import ConfusionMatrix
from pipa_fast.losses import PixelContrastLoss


class Segmentation(lightning.LightningModule):
    """A small network, trained by cross-entropy and weight * contrast."""

    def __init__(self, width: int = 32, weight: float = 0.1, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        layers: list[nn.Module] = []
        for channels, stride, dilation in ((3, 2, 1), (width, 2, 1), (width, 1, 2), (width, 1, 4)):
            convolution = nn.Conv2d(channels, width, 3, stride, dilation, dilation, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(width, len(CLASSES), 1)
        self.projection = nn.Conv2d(width, 32, 1)
        self.contrast = PixelContrastLoss(temperature=0.1, num_anchors=1024)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits at the images' size and features at a quarter of it."""
        features = self.encoder(images)
        logits = F.interpolate(self.classifier(features), images.shape[2:], mode="bilinear")
        return logits, features

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        logits, features = self(images)
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
        # With the predictions, half of the anchors are pixels that the network gets wrong.
        term = self.contrast(self.projection(features), labels, logits.argmax(1))
        self.log_dict({"cross_entropy": loss, "contrast": term})
        return loss + self.hparams["weight"] * term

    def on_validation_epoch_start(self) -> None:
        self.confusion = ConfusionMatrix(len(CLASSES), device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        self.confusion.update(self(images)[0].argmax(1), labels)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            self.confusion.all_reduce()
        self.log("miou", 100 * self.confusion.miou(Streets.eval_classes))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["learning_rate"])


class Losses(lightning.Callback):
    """Keeps the losses and prints some of them."""

    def __init__(self, every: int) -> None:
        self.every, self.history = every, []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.history.append({k: float(v) for k, v in trainer.callback_metrics.items()})
        if trainer.global_step % self.every == 0:
            losses = ", ".join(f"{k} {v:.3f}" for k, v in self.history[-1].items())
            print(f"step {trainer.global_step}: {losses}")


def collate(scenes: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    images = torch.stack([torch.tensor(s.image) for s in scenes]).permute(0, 3, 1, 2) / 255
    return images, torch.stack([torch.tensor(s.label) for s in scenes]).long()


def main(argv: Sequence[str] | None = None) -> tuple[list[dict[str, float]], float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", default="cpu", help="Lightning's: cpu, gpu, auto")
    options = parser.parse_args(argv)
    lightning.seed_everything(options.seed, verbose=False)
    training = DataLoader(Streets("synthetic", "train"), 4, shuffle=True, collate_fn=collate)
    unseen = DataLoader(Streets("synthetic", "val")[:20], 4, collate_fn=collate)
    losses = Losses(every=max(1, options.steps // 5))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False}
    trainer = lightning.Trainer(
        accelerator=options.accelerator, max_steps=options.steps, callbacks=[losses], **quiet
    )
    module = Segmentation()
    trainer.fit(module, training)
    (scores,) = trainer.validate(module, unseen, verbose=False)
    print(f"mIoU on 20 scenes not seen: {scores['miou']:.1f} %")
    return losses.history, scores["miou"]


if __name__ == "__main__":
    main()
