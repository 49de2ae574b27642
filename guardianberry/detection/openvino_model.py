"""Graphs on disk: an .xml with metadata and a .bin, tried before they are written.

A graph takes uint8 [1, height, width, 3] in BGR, as the decoder gives it; it normalises inside. Its outputs are three
raw head maps, one a stride: [1, anchors * outputs, height / stride, width / stride].
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardianberry.disk import fsync_path

if TYPE_CHECKING:
    import openvino

CONVERTER_VERSION = 1  # part of the cached graph's name: increase it whenever the graph changes
INFO_KEY = "guardianberry"  # rt_info section that holds the metadata
STRIDES_PX = (8, 16, 32)
ANCHORS_PER_HEAD = 3


class GraphError(ValueError):
    """These weights cannot be made into a graph; the message says why."""


def load_openvino() -> Any:
    """OpenVINO without its telemetry package, which sends reports over the network, and without its conversion tools.

    The tools cost 0.1 s and 8 MB at each start; `load_convert_model` loads them.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def load_convert_model() -> Any:
    """OpenVINO's `convert_model`."""
    load_openvino()
    if sys.modules["openvino.tools.ovc"] is None:
        del sys.modules["openvino.tools.ovc"]
    from openvino.tools.ovc import convert_model

    return convert_model


def file_sha256(*paths: Path) -> str:
    """sha256 of the contents of the files in this order. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def read_info(graph: openvino.Model) -> dict[str, Any]:
    """The metadata of a graph that `save` wrote: `anchors_px`, `strides_px`, `outputs` an anchor. Raises GraphError."""
    if not graph.has_rt_info([INFO_KEY, "info"]):
        raise GraphError("it was not made by `python -m guardianberry.convert`")
    info = json.loads(graph.get_rt_info([INFO_KEY, "info"]).astype(str))
    if info.get("kind") != "heads":
        raise GraphError("it was made from an .onnx file, which is no longer supported")
    if info.get("converter_version") != CONVERTER_VERSION:
        raise GraphError(f"converter version {info.get('converter_version')}, this program needs {CONVERTER_VERSION}")
    return info


def save(graph: openvino.Model, out: Path, info: dict[str, Any], *, half: bool) -> None:
    """Try the graph, then write it with its metadata. The .xml is renamed last: if it is there, both are complete.

    Raises GraphError if the trial fails, OSError if the files cannot be written.
    """
    ov = load_openvino()
    _try(graph, info)
    part = out.with_name(f".{out.stem}.part.xml")  # a fixed name, so that the files of a killed try are overwritten
    try:
        for suffix in (".bin", ".xml"):
            part.with_suffix(suffix).unlink(missing_ok=True)  # a link would be followed
        graph.set_rt_info(json.dumps({**info, "converter_version": CONVERTER_VERSION}), [INFO_KEY, "info"])
        ov.save_model(graph, part, compress_to_fp16=half)
        for suffix in (".bin", ".xml"):
            fsync_path(part.with_suffix(suffix))
            part.with_suffix(suffix).replace(out.with_suffix(suffix))
        fsync_path(out.parent)
    finally:
        for suffix in (".bin", ".xml"):
            part.with_suffix(suffix).unlink(missing_ok=True)


def _try(graph: openvino.Model, info: dict[str, Any]) -> None:
    """Run the graph once on a grey frame; GraphError if the shapes are wrong or a value is not finite."""
    import numpy as np

    ov = load_openvino()
    height, width = 480, 640
    trial = graph.clone()
    trial.reshape([1, height, width, 3])
    expected = [[1, ANCHORS_PER_HEAD * info["outputs"], height // s, width // s] for s in STRIDES_PX]
    found = [list(output.partial_shape.to_shape()) for output in trial.outputs]
    if found != expected:
        raise GraphError(f"its outputs are {found}, expected {expected}")
    compiled = ov.Core().compile_model(trial, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    values = compiled([np.full((1, height, width, 3), 114, np.uint8)]).values()
    if not all(np.isfinite(value).all() for value in values):
        raise GraphError("it computes NaN or infinity from a plain grey frame")
