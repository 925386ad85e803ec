# SPDX-License-Identifier: Apache-2.0
"""A decode head in the manner of mmsegmentation 1.x, with the pixel contrast among its losses.

With mmseg, this is a head of its registry. Without, a stand-in of our own has what a head uses of
BaseDecodeHead. It has trained with that of mmsegmentation 1.2.2 on mmcv-lite 2.1 (`mmcv.ops`, which
other heads import, was a mock: the whole mmcv has no build for a recent torch). In a config:

    custom_imports = dict(imports=["mmseg_head"])  # this file, on the PYTHONPATH
    model = dict(decode_head=dict(
        type="ContrastHead", in_channels=2048, in_index=3, channels=512, num_classes=19,
        contrast=dict(temperature=0.1, num_anchors=1024), contrast_weight=0.1))

    python examples/mmseg_head.py
"""

import argparse
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipa_fast.data import CLASSES, IGNORE_INDEX, Streets
from pipa_fast.losses import PixelContrastLoss

try:
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.registry import MODELS
except ImportError:

    class Registry(dict[str, type]):
        def register_module(self) -> Any:
            return lambda made: self.setdefault(made.__name__, made)

        def build(self, config: dict[str, Any]) -> Any:
            return self[config["type"]](**{k: v for k, v in config.items() if k != "type"})

    MODELS = Registry()

    class BaseDecodeHead(nn.Module):  # for one input map and one loss
        def __init__(self, in_channels: int, channels: int, *, num_classes: int, **more: Any):
            super().__init__()
            self.in_channels, self.channels, self.num_classes = in_channels, channels, num_classes
            self.in_index, self.ignore_index = more.get("in_index", -1), more["ignore_index"]
            self.dropout, self.conv_seg = nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1)

        def _transform_inputs(self, inputs: Sequence[Tensor]) -> Tensor:
            return inputs[self.in_index]

        def cls_seg(self, features: Tensor) -> Tensor:
            return self.conv_seg(self.dropout(features))

        def _stack_batch_gt(self, batch_data_samples: Sequence[Any]) -> Tensor:
            return torch.stack([sample.gt_sem_seg.data for sample in batch_data_samples])

        def loss(self, inputs: Any, batch_data_samples: Any, train_cfg: Any) -> dict[str, Tensor]:
            return self.loss_by_feat(self.forward(inputs), batch_data_samples)

        def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: Any) -> dict[str, Tensor]:
            truth = self._stack_batch_gt(batch_data_samples)
            logits = F.interpolate(seg_logits, truth.shape[2:], mode="bilinear")
            return {"loss_ce": F.cross_entropy(logits, truth[:, 0], ignore_index=self.ignore_index)}


@MODELS.register_module()
class ContrastHead(BaseDecodeHead):
    """A convolution and the classifier; in training, also a projection that is contrasted."""

    def __init__(self, *args: Any, contrast: dict, contrast_weight: float = 0.1, **kwargs: Any):
        super().__init__(*args, **kwargs)
        convolution = nn.Conv2d(self.in_channels, self.channels, 3, padding=1, bias=False)
        self.features = nn.Sequential(convolution, nn.BatchNorm2d(self.channels), nn.ReLU())
        self.projection = nn.Conv2d(self.channels, 64, 1)
        self.contrast_weight = contrast_weight
        self.contrast = PixelContrastLoss(ignore_index=self.ignore_index, **contrast)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        x = self.features(self._transform_inputs(inputs))
        return (self.cls_seg(x), self.projection(x)) if self.training else self.cls_seg(x)

    def loss_by_feat(self, seg_logits: Any, batch_data_samples: Any) -> dict[str, Tensor]:
        logits, embeddings = seg_logits
        losses = super().loss_by_feat(logits, batch_data_samples)
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        term = self.contrast(embeddings, labels, logits.argmax(1))
        return losses | {"loss_contrast": self.contrast_weight * term}


def main(argv: Sequence[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    backbone = nn.Sequential(nn.Conv2d(3, 32, 7, 4, 3), nn.BatchNorm2d(32), nn.ReLU())
    settings = {"type": "ContrastHead", "in_channels": 32, "channels": 32, "in_index": -1}
    settings |= {"num_classes": len(CLASSES), "ignore_index": IGNORE_INDEX}
    head = MODELS.build(settings | {"contrast": {"temperature": 0.1, "num_anchors": 1024}})
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=5e-3)
    scenes, history = Streets("synthetic", "train"), []
    for step in range(options.steps):
        chosen = [scenes[int(i)] for i in torch.randint(len(scenes), (4,))]
        images = torch.stack([torch.tensor(s.image) for s in chosen]).permute(0, 3, 1, 2) / 255
        truth = [SimpleNamespace(data=torch.tensor(s.label).long()[None]) for s in chosen]
        samples = [SimpleNamespace(gt_sem_seg=t) for t in truth]  # as mmseg's SegDataSample
        losses = head.loss([backbone(images)], samples, train_cfg=None)
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if "loss" in name).backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
        if step % 12 == 0 or step == options.steps - 1:
            print(f"step {step}:", ", ".join(f"{k} {v:.3f}" for k, v in history[-1].items()))
    return history


if __name__ == "__main__":
    main()
