"""The conversion child: converts weights into the graph that the detector runs, and tries the graph.

    python -m guardianberry.convert [--half] IN.pt|IN.xml OUT.xml [ADAPTER.npz]

It is a separate process for three reasons: the memory of torch (2.4 s, 350 MB) is free again afterwards, a crash in
native code (torch wheels have died with SIGILL on a Pi 4) does not end the daemon, and a file of unknown origin is
opened here first. Exit code 0: OUT.xml and OUT.bin are complete. Otherwise the last line on stderr says why.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from guardianberry.detection.adapter import Adapter, AdapterError, read_adapter
from guardianberry.detection.child import restrict
from guardianberry.detection.openvino_model import file_sha256, load_convert_model, load_openvino, read_info, save

if TYPE_CHECKING:
    from torch import nn


# A conversion of yolov5n needs 0.3 GB, one of yolov5x (0.17 GB) 1.0 GB; a file that wants more gets MemoryError.
MEMORY_LIMIT_BYTES, MEMORY_LIMIT_FILE_SIZES = 1 << 30, 12
# Exit codes: these weights can never be used; this computer cannot convert them (no torch, no space); no memory for it.
REFUSED, FAILED_HERE, NO_MEMORY = 1, 3, 4


def export(model: nn.Module, out: Path, *, half: bool = False) -> None:
    """Write a network of `yolov5.py` as the graph `out` (.xml and .bin) after one trial run. Changes `model`.

    Only the person class is kept (6 outputs an anchor; a network of one class keeps its 5). `half` stores fp16 weights:
    half the size, boxes differ by up to 0.4 px and scores by 0.003. Raises GraphError if the trial fails.
    """
    import torch

    from guardianberry.detection import yolov5

    ov = load_openvino()
    network = yolov5.fuse(yolov5.keep_person_only(model.float().eval()))  # type: ignore[arg-type]
    example = torch.zeros((1, 64, 96, 3), dtype=torch.uint8)  # the graph takes any size
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch wants torch.export instead
        traced = torch.jit.trace(yolov5.Bytes(network).eval(), example, check_trace=False)
    graph = load_convert_model()(traced, example_input=example, input=[([1, -1, -1, 3], ov.Type.u8)])
    info = {
        "kind": "heads",
        "anchors_px": yolov5.anchors_px(network),
        "strides_px": [int(stride) for stride in network.detect.stride],
        "outputs": network.detect.no,
    }
    save(graph, out, info, half=half)


def convert_checkpoint(source: Path, out: Path, adapter_file: Path | None = None, *, half: bool) -> None:
    """Convert a YOLOv5 .pt. No code in the file is run: see yolov5.load_checkpoint, also for its errors.

    With an adapter its differences are added first. Raises AdapterError if it is made for another checkpoint.
    """
    from guardianberry.detection import yolov5

    model = yolov5.load_checkpoint(source)
    if adapter_file:
        adapter = read_adapter(adapter_file)
        if adapter.official_sha256 != file_sha256(source):
            raise AdapterError(f"{adapter_file.name} is made for another {source.name}")
        adapt(yolov5.keep_person_only(model), adapter)
    export(model, out, half=half)


def adapt(model: nn.Module, adapter: Adapter) -> None:
    """Add an adapter's differences to a network that is cut down to the person, in place. Raises AdapterError."""
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, difference in adapter.differences.items():
            own = parameters.get(name)
            if own is None or own.shape != difference.shape or not np.isfinite(difference).all():
                raise AdapterError(f"the adapter does not fit this network at {name}")
            own.add_(torch.from_numpy(difference))


def convert_graph(source: Path, out: Path, adapter_file: Path | None = None, *, half: bool) -> None:
    """Try a graph (.xml and .bin) that `export` wrote, the bundled one for example, then copy it. It has no adapter."""
    if adapter_file:
        raise AdapterError(f"{source.name} is a graph: an adapter needs its checkpoint")
    graph = load_openvino().Core().read_model(source)
    save(graph, out, read_info(graph), half=half)


CONVERTERS = {".pt": convert_checkpoint, ".xml": convert_graph}


def main(arguments: list[str]) -> int:
    paths = [Path(argument) for argument in arguments if argument != "--half"]
    if len(paths) not in (2, 3) or paths[0].suffix not in CONVERTERS or paths[1].suffix != ".xml":
        sys.stderr.write("usage: python -m guardianberry.convert [--half] IN.pt|IN.xml OUT.xml [ADAPTER.npz]\n")
        return 2
    try:
        parts = [part for part in (paths[0], paths[0].with_suffix(".bin")) if part.is_file()]
        restrict(MEMORY_LIMIT_BYTES + MEMORY_LIMIT_FILE_SIZES * sum(part.stat().st_size for part in parts))
        os.environ["OMP_NUM_THREADS"] = "1"  # torch's idle threads use CPU
        CONVERTERS[paths[0].suffix](*paths, half="--half" in arguments)
    except Exception as error:  # noqa: BLE001 - the process's outermost frame
        reason = " ".join(str(error).split())[:500]
        sys.stderr.write(f"{reason if isinstance(error, ValueError) else type(error).__name__ + ': ' + reason}\n")
        # torch and OpenVINO have errors of their own for want of memory.
        if isinstance(error, MemoryError) or re.search("allocate memory|bad.alloc|failed to map segment", reason):
            return NO_MEMORY
        return FAILED_HERE if isinstance(error, ImportError | OSError) else REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
