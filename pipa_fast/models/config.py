# SPDX-License-Identifier: Apache-2.0
"""What a segmentation network is made of."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from pipa_fast.checks import require

EncoderName = Literal[
    "streets_s",
    "mit_b0",
    "mit_b1",
    "mit_b2",
    "mit_b3",
    "mit_b4",
    "mit_b5",
    "resnet101",
    "dinov2_s",
    "dinov2_b",
    "dinov2_l",
    "dinov3_s",
    "dinov3_b",
    "dinov3_l",
    "convnext_t",
    "convnext_s",
    "convnext_b",
    "swin_t",
    "swin_s",
    "swin_b",
]
HeadName = Literal["light", "daformer", "segformer", "deeplabv2"]
BatchNorm = Literal["batch", "frozen", "sync"]
PixelFeatures = Literal["fused", "encoder"]


@dataclass(kw_only=True)
class HRDAConfig:
    """Context at half the resolution, detail at full resolution in windows (HRDA)."""

    enabled: bool = False
    detail: tuple[int, int] = (512, 512)
    """Height and width of a detail window [pixels]."""
    detail_loss: float = 0.1
    """Share of the window's own loss in every cross-entropy; the fused prediction has the rest."""

    def __post_init__(self) -> None:
        require(min(self.detail) > 0, "model.hrda.detail", self.detail, "two positive sizes")
        share = self.detail_loss
        require(0 <= share <= 1, "model.hrda.detail_loss", share, "a share in [0, 1]")


@dataclass(kw_only=True)
class ModelConfig:
    """Encoder, decode head and projection heads."""

    encoder: EncoderName = "streets_s"
    head: HeadName = "light"
    num_classes: int = 19
    weights: str | None = None
    """Weights of the encoder; None draws them at random. MiT: a folder that transformers saved, a
    name on its hub, or a file that NVlabs published (mit_b5.pth). resnet101: a file with
    mmsegmentation's names (resnet101_v1c). DINOv2, DINOv3, ConvNeXt, Swin: a folder or a hub's
    name."""
    start: str | None = None
    """Folder of a run, or one as `export` and `convert` write it, of whose whole network training
    starts; projection heads are drawn at random. None starts from `weights` alone."""
    projections: bool = True
    """Whether there are projection heads, which the contrasts train. Training sets it by whether a
    term reads them; inference never needs them."""
    pixel_dim: int = 256
    patch_dim: int = 128
    """Dimensions of the embeddings for pixel contrast and patch consistency."""
    pixel_features: PixelFeatures = "fused"
    """What the pixel embeddings are made of. "fused": the decode head's map, so that the contrast
    trains that head too. "encoder": all of the encoder's maps, enlarged and joined, as PiPa's
    release has it: a wider projection, and the decode head does not see the contrast."""
    patch_stride: int | None = None
    """Side of a cell of the patch embeddings [pixels], a multiple of the network's stride: they are
    made of features averaged over it. None is the network's own."""
    batch_norm: BatchNorm = "batch"
    """"batch": statistics of the rank's batch. "frozen": stored statistics, also in training, so
    that ranks agree. "sync": of all ranks' batches. ResNets, the DAFormer and SegFormer
    heads and the projection heads have such layers."""
    head_channels: int | None = None
    """Width of the SegFormer head; None is the published one, 256 for MiT-B0 and B1, else 768."""
    dilations: tuple[int, ...] | None = None
    """Of the DeepLabV2 head's convolutions; None is the paper's 6, 12, 18 and 24. The code of
    AdaptSegNet, and with it DACS and DAFormer's `dlv2red`, has 6 and 12 alone."""
    dropout: float = 0.1
    """Of whole channels before the classifier of the DAFormer and SegFormer heads; the others have
    none."""
    drop_path: float = 0.1
    """Stochastic depth of the last block, earlier ones linearly less; of DINOv2's and DINOv3's
    blocks all alike. streets_s and ResNets have none."""
    checkpoint_activations: bool = False
    """Whether the encoder's blocks are computed again in the backward pass, not kept: less memory
    for a third more time."""
    channels_last: bool = False
    """Whether convolutions see the channels as innermost dimension, as tensor cores like them."""
    compile: bool = False
    """Whether the encoder goes through torch.compile: minutes at the start."""
    hrda: HRDAConfig = field(default_factory=HRDAConfig)

    def __post_init__(self) -> None:
        for name, choices in (
            ("encoder", EncoderName),
            ("head", HeadName),
            ("batch_norm", BatchNorm),
            ("pixel_features", PixelFeatures),
        ):
            known, value = get_args(choices), getattr(self, name)
            require(value in known, f"model.{name}", value, f"one of {', '.join(known)}")
        require(self.num_classes > 0, "model.num_classes", self.num_classes, "a positive count")
        for name in ("pixel_dim", "patch_dim"):
            value = getattr(self, name)
            require(0 < value <= 512, f"model.{name}", value, "in 1 ... 512, as the ops take it")
        fine = not self.hrda.enabled or self.head != "deeplabv2"
        require(fine, "model.head", self.head, "another with model.hrda, whose maps are finest")
        if self.head_channels is not None:
            width = self.head_channels
            require(width > 0, "model.head_channels", width, "a positive count")
            require(
                self.head == "segformer", "model.head_channels", width, "None but for segformer"
            )
        if self.dilations is not None:
            fine = len(self.dilations) > 0 and min(self.dilations) > 0
            require(fine, "model.dilations", self.dilations, "positive counts, or None")
            alone = self.head == "deeplabv2"
            require(alone, "model.dilations", self.dilations, "None but for deeplabv2")
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            require(0 <= value < 1, f"model.{name}", value, "a probability in [0, 1)")
        if self.checkpoint_activations and self.encoder == "resnet101":
            expected = "frozen with checkpoint_activations: others would count each batch twice"
            require(self.batch_norm == "frozen", "model.batch_norm", self.batch_norm, expected)
        if self.encoder == "streets_s":
            require(self.weights is None, "model.weights", self.weights, "None for streets_s")
