"""Small YOLOv5 networks with random weights, and checkpoints of them in the official form. Imports torch."""

import sys
import types
from pathlib import Path

import torch

from guardianberry.detection import yolov5

# Where official checkpoints say that their classes live.
OFFICIAL_HOMES = {
    "models.common": (yolov5.Conv, yolov5.C3, yolov5.Bottleneck, yolov5.SPPF, yolov5.Concat),
    "models.yolo": (yolov5.Model, yolov5.Detect),
}


def network(*, nc: int = 80, seed: int = 0) -> yolov5.Model:
    """A quarter of a yolov5n whose signal lives: with fresh weights hardly any of the picture reaches the heads.

    The batch norms are uneven too: fresh ones would hide mistakes in folding them.
    """
    model = yolov5.build(nc=nc, width=0.125, depth=0.33, seed=seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def save_official(model: yolov5.Model, path: Path) -> None:
    """Write a checkpoint whose pickle names the classes as YOLOv5's own training does, in half precision."""
    modules = {name: types.ModuleType(name) for name in ("models", *OFFICIAL_HOMES)}
    own_homes = {cls: cls.__module__ for classes in OFFICIAL_HOMES.values() for cls in classes}
    sys.modules.update(modules)
    try:
        for name, classes in OFFICIAL_HOMES.items():
            for cls in classes:
                setattr(modules[name], cls.__name__, cls)
                cls.__module__ = name
        torch.save({"epoch": -1, "model": model.half(), "ema": None, "optimizer": None}, path)
    finally:
        for cls, home in own_homes.items():
            cls.__module__ = home
        for name in modules:
            del sys.modules[name]
