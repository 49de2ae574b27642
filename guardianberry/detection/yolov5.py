"""YOLOv5 as torch modules: read checkpoints, build new networks, keep only the person class.

Imported by the conversion child, by `training/` and by tests. The daemon itself does not import it, because torch takes
2.4 s and 350 MB. Class and attribute names are those of YOLOv5 v7.0 (Ultralytics, AGPL-3.0), since checkpoints hold
them. Only the layers of the P5 models n, s, m, l and x (v6.0 and later) are known; anything else is refused.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guardianberry.detection.checkpoint import Checkpoint
from guardianberry.detection.pickle_reader import CheckpointError, Layer

# width/height in pixels, three per head, finest first: YOLOv5's own, fitted to COCO.
COCO_ANCHORS_PX = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
STRIDES_PX = (8, 16, 32)
PERSON_CLASS = 0  # of the 80 COCO classes
MAX_CLASSES = 1000


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

    `no` outputs an anchor: x, y, w, h, objectness, then one a class.
    `anchors` is a buffer in units of the stride, as in the official checkpoints.
    """

    anchors: Tensor

    def __init__(self, outputs: int, anchors_px: tuple, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.no = outputs
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
    *,
    nc: int,
    outputs: int = 0,
    width: float = 0.25,
    depth: float = 0.33,
    anchors_px: tuple = COCO_ANCHORS_PX,
    seed: int = 0,
) -> Model:
    """A YOLOv5 v6 P5 network of `nc` classes with random weights (n: width .25, depth .33; s: .50, .33).

    `outputs` an anchor: by default 5 + nc, but 5 for one class, where objectness is the score.
    """
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
        ([17, 20, 23], Detect(outputs or (5 if nc == 1 else nc + 5), anchors_px, (ch(256), ch(512), ch(1024)))),
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


# What a layer computes beyond its numbers. A checkpoint must agree with our own modules in these.
_ATTRIBUTES = {
    "Conv2d": ("stride", "padding", "dilation", "groups"),
    "BatchNorm2d": ("eps",),
    "MaxPool2d": ("kernel_size", "stride", "padding"),
    "Upsample": ("scale_factor", "mode"),
    "Bottleneck": ("add",),
    "Concat": ("d",),
}


def load_checkpoint(path: Path) -> Model:
    """A YOLOv5 detection checkpoint as an f32 network in evaluation mode; raises CheckpointError, OSError.

    The file is read by `checkpoint.py`, not by torch, and nothing in it is run. It must hold the layers that `build`
    makes, of any width and depth up to yolov5x; their numbers are copied into modules of ours.
    """
    try:
        with path.open("rb") as file:
            checkpoint = Checkpoint(file)
            found = checkpoint.root.get("ema") or checkpoint.root["model"]
            model = _build_like(found)
            with torch.no_grad():
                _fill(model, found, checkpoint, "model")
    except (CheckpointError, LookupError, TypeError, AttributeError, ValueError) as error:
        reason = str(error) if isinstance(error, CheckpointError) else "it holds no YOLOv5 detection model"
        raise CheckpointError(
            f"{path.name} cannot be used: {reason}. Use an official YOLOv5 v7.0 checkpoint (yolov5n.pt, yolov5s.pt,"
            " ...) or one that its train.py finished; no code from this file was run."
        ) from error
    return model.eval()


def _build_like(found: Layer) -> Model:
    """An unfilled network of the width, depth and classes of `found`, within yolov5x's."""
    layers = found.state["_modules"]["model"].state["_modules"]
    channels = layers["0"].state["_modules"]["conv"].state["_parameters"]["weight"].shape[0]
    repeats = len(layers["6"].state["_modules"]["m"].state["_modules"])
    rows = layers["24"].state["_modules"]["m"].state["_modules"]["0"].state["_parameters"]["bias"].shape[0]
    if channels > 80 or repeats > 12 or rows % 3 or rows > 3 * (5 + MAX_CLASSES):
        raise CheckpointError(f"it has {channels} channels, {repeats} repeats and {rows} outputs: not a YOLOv5 P5 size")
    return build(nc=rows // 3 - 5, outputs=rows // 3, width=channels / 64, depth=repeats / 9)


def _fill(module: nn.Module, found: Layer, checkpoint: Checkpoint, place: str) -> None:
    """Copy the numbers of `found`, module by module; CheckpointError where it differs from `module`."""
    name, state = type(module).__name__, found.state
    attributes = _ATTRIBUTES.get(name, ()) + (("f",) if hasattr(module, "f") else ())
    if found.name != name or any(state[attribute] != getattr(module, attribute) for attribute in attributes):
        raise CheckpointError(f"its {place} is another {found.name} than in YOLOv5 v6 and v7")
    for numbers, known in ((state["_parameters"], module._parameters), (state["_buffers"], module._buffers)):
        if {key for key, tensor in numbers.items() if tensor} != {key for key, own in known.items() if own is not None}:
            raise CheckpointError(f"its {place} has other weights than in YOLOv5 v6 and v7")
        for key, own in known.items():
            if own is not None:
                if numbers[key].shape != own.shape:
                    raise CheckpointError(f"its {place}.{key} has shape {numbers[key].shape}, not {tuple(own.shape)}")
                own.copy_(torch.from_numpy(checkpoint.read(numbers[key]).astype(own.numpy().dtype)))
    children = dict(module.named_children())
    if set(state["_modules"]) != set(children):
        raise CheckpointError(f"its {place} has other layers than YOLOv5 v6 and v7")
    for key, child in children.items():
        _fill(child, state["_modules"][key], checkpoint, f"{place}.{key}")


def keep_person_only(model: Model) -> Model:
    """Cut the heads, in place, to x, y, w, h, objectness and the person class: 6 outputs an anchor.

    A network of 5 or 6 outputs knows only persons and stays as it is.
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
    detect.no = 6
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
