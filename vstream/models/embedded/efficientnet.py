"""EfficientNet-Lite0: what one picture shows, as probabilities over the 1000 ImageNet classes.

The network of Tan and Le (2019) without squeeze-and-excitation and with ReLU6, for inference only. It knows nothing of
video, language or where its weights come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 224  # pixels of a picture's shorter side, as in the weights' training
LONGEST_SIDE = 448
STRIDE = 32  # pixels of a picture to one cell of the feature map
NUM_CLASSES = 1000
NUM_FEATURES = 1280
BATCH_NORM_EPS = 1e-3  # of the weights' training


@dataclass(frozen=True)
class Stage:
    """`repeats` blocks of one width; only the first one changes channels and stride."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


STAGES = (
    Stage(repeats=1, kernel=3, stride=1, expand=1, channels=16),
    Stage(repeats=2, kernel=3, stride=2, expand=6, channels=24),
    Stage(repeats=2, kernel=5, stride=2, expand=6, channels=40),
    Stage(repeats=3, kernel=3, stride=2, expand=6, channels=80),
    Stage(repeats=3, kernel=5, stride=1, expand=6, channels=112),
    Stage(repeats=4, kernel=5, stride=2, expand=6, channels=192),
    Stage(repeats=1, kernel=3, stride=1, expand=6, channels=320),
)


class SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow does (the odd pixel goes right and below), as the weights were trained."""

    def forward(self, x: Tensor) -> Tensor:
        """[T, C, H, W] to [T, C', ceil(H / stride), ceil(W / stride)]."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        down, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


def conv_bn(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias and its batch normalisation."""
    return nn.Sequential(
        SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS),
    )


class MBConv(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        width = inputs * expand
        self.expand = conv_bn(inputs, width) if expand > 1 else None
        self.depthwise = conv_bn(width, width, kernel, stride, groups=width)
        self.project = conv_bn(width, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[T, C, H, W] to [T, C', H / stride, W / stride]."""
        wide = F.relu6(self.expand(x)) if self.expand is not None else x
        y: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The classifier; pictures in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32, kernel=3, stride=2)
        self.blocks = nn.ModuleList(_blocks(32))
        self.top = conv_bn(STAGES[-1].channels, NUM_FEATURES)
        self.classifier = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def feature_map(self, pictures: Tensor) -> Tensor:
        """What the classifier sees and where, [T, 1280, H / 32, W / 32], of prepared pictures [T, 3, H, W]."""
        x = F.relu6(self.stem(pictures))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.top(x))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits [T, 1000] of prepared pictures [T, 3, H, W], each as a whole."""
        logits: Tensor = self.classifier(self.feature_map(pictures).mean(dim=(2, 3)))
        return logits


def _blocks(inputs: int) -> list[MBConv]:
    blocks = []
    for stage in STAGES:
        for index in range(stage.repeats):
            stride = stage.stride if index == 0 else 1
            block = MBConv(inputs, stage.channels, kernel=stage.kernel, stride=stride, expand=stage.expand)
            blocks.append(block)
            inputs = stage.channels
    return blocks


def prepare(pictures: Tensor, size: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    """Pictures [T, H, W, 3] uint8 RGB as the network wants them, [T, 3, *size] float32 in about -1..1."""
    x = pictures.movedim(-1, 1).float()
    x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
    return (x.clamp(0, 255) - 127) / 128


def undistorted_size(height: int, width: int) -> tuple[int, int]:
    """A size that keeps a picture's proportions: the shorter side 224, the longer whole cells, at most twice that."""
    scale = SIDE / min(height, width)
    longer = min(LONGEST_SIDE, max(SIDE, STRIDE * round(scale * max(height, width) / STRIDE)))
    return (SIDE, longer) if width >= height else (longer, SIDE)


_PARTS = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "top.0", "_bn1": "top.1", "_fc": "classifier"}
_BLOCK_PARTS = {
    "_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "depthwise.0", "_bn1": "depthwise.1",
    "_project_conv": "project.0", "_bn2": "project.1",
}  # fmt: skip


def rename_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published checkpoint's tensors under this module's names."""
    return {_renamed(name): tensor for name, tensor in published.items() if not name.endswith("num_batches_tracked")}


def _renamed(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "_blocks":
        return f"blocks.{parts[1]}.{_BLOCK_PARTS[parts[2]]}.{parts[3]}"
    return f"{_PARTS[parts[0]]}.{parts[1]}"


@torch.no_grad()
def load(weights: dict[str, Tensor]) -> EfficientNetLite0:
    """A frozen network with these weights, names as from `rename_weights`."""
    model = EfficientNetLite0().eval().requires_grad_(False)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.endswith("num_batches_tracked"))]
    assert not wrong, f"weights do not fit the network: {wrong}"
    return model
