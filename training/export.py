"""Makes the runtime's graph from trained weights: `python -m training.export RUN/best.pt models/guardianberry-n.xml`.

Writes the .xml, the .bin beside it (half precision) and a .sha256 of both, in the form that `sha256sum -c` reads.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from guardianberry.detection.conversion_child import export
from guardianberry.detection.openvino_model import file_sha256
from guardianberry.detection.yolov5 import Model, build


def load_trained(path: Path) -> Model:
    """The network of a best.pt, in f32."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model = build(nc=1)
    model.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    )
    return model.eval()


def export_trained(weights: Path, xml: Path) -> None:
    export(load_trained(weights), xml, half=True)
    lines = [f"{file_sha256(path)}  {path.name}\n" for path in (xml, xml.with_suffix(".bin"))]
    xml.with_suffix(".sha256").write_text("".join(lines))


if __name__ == "__main__":
    export_trained(Path(sys.argv[1]), Path(sys.argv[2]))
