"""Graphs on disk: an .xml and a .bin that carry what the detector must know, tried before they are written.

A graph takes uint8 [1, height, width, 3] in BGR, as the decoder gives it: normalisation and channel order are inside.
Its outputs are three raw head maps (kind "heads"), or one table of decoded boxes (kind "decoded", from an .onnx).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openvino

CONVERTER_VERSION = 1  # part of the cached graph's name: count it up whenever the graph changes
INFO_KEY = "guardianberry"  # rt_info section that holds the metadata
STRIDES_PX = (8, 16, 32)
ANCHORS_PER_HEAD = 3
TRIAL_HEIGHT_PX, TRIAL_WIDTH_PX = 480, 640  # where the graph itself leaves the size open


class GraphError(ValueError):
    """These weights cannot be made into a graph; the message says why."""


def load_openvino() -> Any:
    """OpenVINO without its telemetry package, which reports over the network when the conversion tools are used.

    And without those tools: they cost every start 0.1 s and 8 MB. `load_convert_model` is for the one who needs them.
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
    """sha256 of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def read_info(graph: openvino.Model) -> dict[str, Any]:
    """The metadata of a graph that `save` wrote; GraphError where it is none of ours."""
    if not graph.has_rt_info([INFO_KEY, "info"]):
        raise GraphError("it was not made by `python -m guardianberry.convert`")
    info = json.loads(graph.get_rt_info([INFO_KEY, "info"]).astype(str))
    if info.get("converter_version") != CONVERTER_VERSION:
        raise GraphError(f"converter version {info.get('converter_version')}, this program needs {CONVERTER_VERSION}")
    return info


def save(graph: openvino.Model, out: Path, info: dict[str, Any], *, half: bool) -> None:
    """Try the graph, then write it with its metadata. The .xml appears last and whole: where it is, all is."""
    ov = load_openvino()
    _try(graph, info)
    part = out.with_name(f".{out.stem}.part.xml")  # the same at every try: a killed one's leftovers are overwritten
    try:
        graph.set_rt_info(json.dumps({**info, "converter_version": CONVERTER_VERSION}), [INFO_KEY, "info"])
        ov.save_model(graph, part, compress_to_fp16=half)
        # Saved again because the .xml carries the checksum of the .bin: SD cards forget.
        graph.set_rt_info(file_sha256(part.with_suffix(".bin")), [INFO_KEY, "bin_sha256"])
        ov.save_model(graph, part, compress_to_fp16=half)
        for suffix in (".bin", ".xml"):
            _sync(part.with_suffix(suffix))
            part.with_suffix(suffix).replace(out.with_suffix(suffix))
        _sync(out.parent)
    finally:
        for suffix in (".bin", ".xml"):
            part.with_suffix(suffix).unlink(missing_ok=True)


def _try(graph: openvino.Model, info: dict[str, Any]) -> None:
    """Run the graph once on a grey frame; GraphError where inputs, outputs or numbers are not as promised."""
    import numpy as np

    ov = load_openvino()
    height, width = info.get("input_px") or (TRIAL_HEIGHT_PX, TRIAL_WIDTH_PX)
    trial = graph.clone()
    trial.reshape([1, height, width, 3])
    sizes = [(height // s, width // s) for s in STRIDES_PX]
    if info["kind"] == "heads":
        expected = [[1, ANCHORS_PER_HEAD * info["outputs"], *size] for size in sizes]
    else:
        expected = [[1, ANCHORS_PER_HEAD * sum(h * w for h, w in sizes), info["outputs"]]]
    found = [list(output.partial_shape.to_shape()) for output in trial.outputs]
    if found != expected:
        raise GraphError(f"its outputs are {found}, expected {expected}")
    compiled = ov.Core().compile_model(trial, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    values = compiled([np.full((1, height, width, 3), 114, np.uint8)]).values()
    if not all(np.isfinite(value).all() for value in values):
        raise GraphError("it computes NaN or infinity from a plain grey frame")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
