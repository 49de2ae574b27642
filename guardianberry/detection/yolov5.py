"""YOLOv5 as torch modules: read official checkpoints, build new networks, keep only the person class.

Imported by the conversion child, by `training/` and by tests. The daemon itself does not import it, because torch takes
2.4 s and 350 MB. Class and attribute names are those of YOLOv5 v7.0 (Ultralytics, AGPL-3.0): an official checkpoint is
a pickle of whole module objects, and `torch.load` puts their attributes into these classes. Only the layers of the P5
models n, s, m, l and x (v6.0 and later) are known; anything else is refused.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# width/height in pixels, three per head, finest first: YOLOv5's own, fitted to COCO.
COCO_ANCHORS_PX = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
STRIDES_PX = (8, 16, 32)
PERSON_CLASS = 0  # of the 80 COCO classes


class CheckpointError(ValueError):
    """The file is not a YOLOv5 checkpoint that can be read safely; the message says why and what to do."""


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, padding: int | None = None) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels, 1)
        self.cv2 = Conv(channels, channels, 3)
        self.add = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C3(nn.Module):
    """Cross-stage partial block with three convolutions."""

    def __init__(self, c_in: int, c_out: int, repeats: int = 1, *, shortcut: bool = True) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = Conv(c_in, hidden)
        self.cv2 = Conv(c_in, hidden)
        self.cv3 = Conv(2 * hidden, c_out)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut=shortcut) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling in its fast form: one 5x5 max-pool applied three times."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        hidden = c_in // 2
        self.cv1 = Conv(c_in, hidden)
        self.cv2 = Conv(hidden * 4, c_out)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


class Concat(nn.Module):
    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, self.d)


class Detect(nn.Module):
    """The three heads. Returns raw maps, one a stride: [batch, anchors * outputs, height, width], before any sigmoid.

    `no` outputs an anchor: x, y, w, h, objectness, then one per class (none if `build` made it with nc == 1).
    `anchors` is a buffer in units of the stride, as in the official checkpoints.
    """

    anchors: Tensor

    def __init__(self, nc: int, anchors_px: tuple, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.nc = nc
        self.no = 5 if nc == 1 else nc + 5  # with one class, objectness is the score
        self.nl = len(anchors_px)
        self.na = len(anchors_px[0])
        self.stride = torch.tensor(STRIDES_PX, dtype=torch.float32)
        self.register_buffer("anchors", torch.tensor(anchors_px).float() / self.stride.view(-1, 1, 1))
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * self.na, 1) for c in channels)

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        return [head(level) for head, level in zip(self.m, x, strict=True)]


class Model(nn.Module):
    """A list of layers. The attribute `f` of each says where its input comes from: -1 is the layer before."""

    model: nn.Sequential

    def forward(self, images: Tensor) -> list[Tensor]:
        x: Any = images
        outputs: list[Any] = []
        for layer in self.model:
            sources: Any = layer.f
            x = layer(x if sources == -1 else [x if j == -1 else outputs[j] for j in sources])
            outputs.append(x)
        return x

    @property
    def detect(self) -> Detect:
        last = self.model[-1]
        assert isinstance(last, Detect)
        return last


def build(
    *, nc: int, width: float = 0.25, depth: float = 0.33, anchors_px: tuple = COCO_ANCHORS_PX, seed: int = 0
) -> Model:
    """A YOLOv5 v6 P5 network with random weights (n: width .25, depth .33; s: .50, .33)."""
    torch.manual_seed(seed)

    def ch(channels: int) -> int:
        return math.ceil(channels * width / 8) * 8

    def rep(repeats: int) -> int:
        return max(round(repeats * depth), 1)

    def up() -> nn.Upsample:
        return nn.Upsample(scale_factor=2, mode="nearest")

    layers: list[tuple[int | list[int], nn.Module]] = [
        (-1, Conv(3, ch(64), 6, 2, 2)),
        (-1, Conv(ch(64), ch(128), 3, 2)),
        (-1, C3(ch(128), ch(128), rep(3))),
        (-1, Conv(ch(128), ch(256), 3, 2)),
        (-1, C3(ch(256), ch(256), rep(6))),
        (-1, Conv(ch(256), ch(512), 3, 2)),
        (-1, C3(ch(512), ch(512), rep(9))),
        (-1, Conv(ch(512), ch(1024), 3, 2)),
        (-1, C3(ch(1024), ch(1024), rep(3))),
        (-1, SPPF(ch(1024), ch(1024))),
        (-1, Conv(ch(1024), ch(512), 1)),
        (-1, up()),
        ([-1, 6], Concat()),
        (-1, C3(2 * ch(512), ch(512), rep(3), shortcut=False)),
        (-1, Conv(ch(512), ch(256), 1)),
        (-1, up()),
        ([-1, 4], Concat()),
        (-1, C3(2 * ch(256), ch(256), rep(3), shortcut=False)),
        (-1, Conv(ch(256), ch(256), 3, 2)),
        ([-1, 14], Concat()),
        (-1, C3(2 * ch(256), ch(512), rep(3), shortcut=False)),
        (-1, Conv(ch(512), ch(512), 3, 2)),
        ([-1, 10], Concat()),
        (-1, C3(2 * ch(512), ch(1024), rep(3), shortcut=False)),
        ([17, 20, 23], Detect(nc, anchors_px, (ch(256), ch(512), ch(1024)))),
    ]
    model = Model()
    for source, layer in layers:
        layer.f = source  # type: ignore[assignment]
    model.model = nn.Sequential(*(layer for _, layer in layers))
    return model


class Bytes(nn.Module):
    """`network` with uint8 NHWC BGR input. Its first convolution takes over channel order and 1/255, at no cost.

    This is exact at the borders too, because the convolution pads with zeros. Bytes are exact in bf16 and fp16.
    """

    def __init__(self, network: Model) -> None:
        super().__init__()
        self.network = network
        first: Any = network.model[0].conv
        first.weight = nn.Parameter(first.weight.detach().flip(1) / 255)

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(frame.permute(0, 3, 1, 2).float()))


_TORCH_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.SiLU, nn.MaxPool2d, nn.Upsample, nn.ModuleList, nn.Sequential)
_SAFE_GLOBALS: list[Any] = [
    *((layer, f"models.common.{layer.__name__}") for layer in (Conv, C3, Bottleneck, SPPF, Concat)),
    *((Detect, "models.yolo.Detect"), (Model, "models.yolo.Model"), (Model, "models.yolo.DetectionModel")),
    *(OrderedDict, *_TORCH_LAYERS),
]


_LOAD_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)


def load_checkpoint(path: Path) -> Model:
    """An official YOLOv5 detection checkpoint as an f32 network in evaluation mode; raises CheckpointError.

    No code in the file is run: `weights_only=True` accepts only tensors and the classes in _SAFE_GLOBALS.
    """
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = checkpoint["ema"] or checkpoint["model"] if "ema" in checkpoint else checkpoint["model"]
        if not isinstance(model, Model) or not isinstance(model.detect, Detect):
            raise TypeError("it holds no YOLOv5 detection model")
    except _LOAD_ERRORS as error:
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path.name} cannot be used: {first_line}. Use an official YOLOv5 v7.0 checkpoint"
            " (yolov5n.pt, yolov5s.pt, ...); no code from this file was run."
        ) from error
    for module in model.modules():
        if isinstance(module, nn.Upsample):
            module.recompute_scale_factor = None  # absent in checkpoints older than torch 1.11
    return model.float().eval()


def keep_person_only(model: Model) -> Model:
    """Cut the heads, in place, to x, y, w, h, objectness and the person class: 6 outputs an anchor.

    A network that knows only persons keeps its 5 outputs an anchor.
    """
    detect = model.detect
    if detect.no <= 6:
        return model
    rows = torch.tensor([a * detect.no + k for a in range(detect.na) for k in (0, 1, 2, 3, 4, 5 + PERSON_CLASS)])
    for i, head in enumerate(detect.m):
        cut = nn.Conv2d(head.in_channels, len(rows), 1)  # type: ignore[arg-type]
        cut.weight = nn.Parameter(head.weight[rows].detach().clone())  # type: ignore[index]
        cut.bias = nn.Parameter(head.bias[rows].detach().clone())  # type: ignore[index]
        detect.m[i] = cut
    detect.nc, detect.no = 1, 6
    return model


def anchors_px(model: Model) -> list[list[list[float]]]:
    """Anchor sizes as [head][anchor][width, height] in pixels of the network's input."""
    detect = model.detect
    stride = torch.as_tensor(detect.stride, dtype=torch.float32).view(-1, 1, 1)
    return (detect.anchors.float() * stride).tolist()


def fuse(model: Model) -> Model:
    """Fold each batch norm into its convolution, in place (YOLOv5's fuse_conv_and_bn). For evaluation only."""
    for module in model.modules():
        if isinstance(module, Conv) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = nn.utils.fuse_conv_bn_eval(module.conv.eval(), module.bn.eval())
            module.bn = nn.Identity()  # type: ignore[assignment]
    return model
