"""Reads a trainable checkpoint back out of a graph that `training.export` wrote.

    python -m training.read_back models/guardianberry-n.xml models/guardianberry-n.training.pt

In the graph each batch norm is folded into its convolution. Here it comes back as one that only adds the bias, so that
`training.train --start` goes on from the file as from a run's best.pt. Half precision, as the graph's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guardianberry.detection.openvino_model import load_openvino
from guardianberry.detection.yolov5 import Conv, Model, build
from training.trainer import half_weights, save


def _convolutions(xml: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and bias of each convolution, float32, by the module's name in the network."""
    found = {}
    for operation in load_openvino().Core().read_model(xml).get_ordered_ops():
        if operation.get_type_name() != "Convolution":
            continue
        name = operation.get_friendly_name().removeprefix("__module.network.").partition("/")[0]
        (after,) = (target.get_node() for target in operation.output(0).get_target_inputs())
        found[name] = _constant(operation.input_value(1)), _constant(after.input_value(1)).flatten()
    return found


def _constant(value: Any) -> Tensor:
    node = value.get_node()
    while node.get_type_name() != "Constant":  # half precision is widened behind it
        node = node.input_value(0).get_node()
    return torch.from_numpy(np.array(node.get_data()).astype(np.float32))


def read_back(xml: Path) -> Model:
    """The network of a graph with one class, with batch norms that train; its outputs are the graph's."""
    model, found = build(nc=1), _convolutions(xml)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Conv):
                weight, bias = found.pop(f"{name}.conv")
                module.conv.weight.copy_(weight)
                module.bn.bias.copy_(bias)
                module.bn.running_var.fill_(1 - module.bn.eps)  # type: ignore[union-attr]
        for level, head in enumerate(model.detect.m):
            weight, bias = found.pop(f"model.24.m.{level}")
            head.weight.copy_(weight)  # type: ignore[operator]
            head.bias.copy_(bias)  # type: ignore[operator]
        first = model.model[0].conv
        first.weight.copy_(first.weight.flip(1) * 255)  # the graph takes BGR bytes
    return model.eval()


if __name__ == "__main__":
    save(Path(sys.argv[2]), half_weights(read_back(Path(sys.argv[1]))))
