"""The conversion child: turns weights into the graph that the detector runs, and proves that the graph works.

    python -m guardianberry.convert IN.pt|IN.onnx|IN.xml OUT.xml

It is a process of its own for three reasons: torch (2.4 s, 350 MB) is gone from memory afterwards, a crash in native
code (torch wheels have died with SIGILL on a Pi 4) does not take the daemon along, and a file of unknown origin is
opened here first. Exit 0: OUT.xml and OUT.bin are complete. Else the last line on stderr says why.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardianberry.detection.openvino_model import (
    ANCHORS_PER_HEAD,
    STRIDES_PX,
    TRIAL_HEIGHT_PX,
    TRIAL_WIDTH_PX,
    GraphError,
    file_sha256,
    load_convert_model,
    load_openvino,
    read_info,
    save,
)

if TYPE_CHECKING:
    import openvino
    from torch import nn

MAX_SIDE_PX = 4096  # no camera of ours is larger; a graph that asks for more is broken or hostile
MEMORY_LIMIT_BYTES = 8 << 30  # a graph that wants more gets MemoryError, and the machine stays usable
# Exit codes: these weights will never do; or this computer cannot do it (no torch, no memory, no space).
REFUSED, FAILED_HERE = 1, 3


def export(model: nn.Module, out: Path, *, model_name: str, source_sha256: str = "", half: bool = False) -> None:
    """Write a network of `yolov5.py` as the graph `out` (.xml, with .bin beside it), tried once. `model` is used up.

    Several classes are cut down to the person (6 outputs an anchor); nc=1 keeps its 5. `half` stores the weights in
    fp16, half the size: boxes move by up to 0.4 px and scores by 0.003: fine for a network measured in that form,
    needless for a cache that promises the boxes of the official f32 network.
    """
    import torch

    from guardianberry.detection import yolov5

    ov = load_openvino()
    network = yolov5.fuse(yolov5.keep_person_only(model.float().eval()))  # type: ignore[arg-type]
    example = torch.zeros((1, 64, 96, 3), dtype=torch.uint8)  # any size: nothing of it stays in the graph
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch wants torch.export instead
        traced = torch.jit.trace(_take_bytes(network), example, check_trace=False)
    graph = load_convert_model()(traced, example_input=example, input=[([1, -1, -1, 3], ov.Type.u8)])
    info = {
        "kind": "heads",
        "anchors_px": yolov5.anchors_px(network),
        "strides_px": [int(stride) for stride in network.detect.stride],
        "outputs": network.detect.no,
        "model_name": model_name,
        "source_sha256": source_sha256,
    }
    save(graph, out, info, half=half)


def _take_bytes(network: Any) -> nn.Module:
    """`network` behind uint8 NHWC BGR input. Channel order and 1/255 go into the first convolution: they cost nothing.

    That is exact at the borders too, because the convolution pads with zeros; and bytes are exact in bf16 and fp16,
    which 255ths are not.
    """
    import torch
    from torch import nn

    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            first = network.model[0].conv
            first.weight = nn.Parameter(first.weight.detach().flip(1) / 255)

        def forward(self, frame: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(self.network(frame.permute(0, 3, 1, 2).float()))

    return Bytes().eval()


def convert_checkpoint(source: Path, out: Path, *, half: bool) -> None:
    """A YOLOv5 .pt; nothing in the file is run (see yolov5.load_checkpoint)."""
    from guardianberry.detection import yolov5

    export(yolov5.load_checkpoint(source), out, model_name=source.name, source_sha256=file_sha256(source), half=half)


def convert_onnx(source: Path, out: Path, *, half: bool) -> None:
    """What YOLOv5's export.py writes: images [1, 3, H, W] as RGB 0..1 in, boxes [1, N, 5 + classes] (xywh) out."""
    ov = load_openvino()
    graph = ov.Core().read_model(source)
    fixed_px, number = _check_onnx(graph), graph.inputs[0].element_type
    prepare = ov.preprocess.PrePostProcessor(graph)
    bgr, rgb = ov.preprocess.ColorFormat.BGR, ov.preprocess.ColorFormat.RGB
    prepare.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC")).set_color_format(bgr)
    prepare.input().model().set_layout(ov.Layout("NCHW"))
    prepare.input().preprocess().convert_element_type(ov.Type.f32).convert_color(rgb).scale(255.0)
    prepare.input().preprocess().convert_element_type(number)
    graph = prepare.build()
    table = graph.output(0).get_node().input_value(0)
    outputs = min(table.partial_shape[2].get_length(), 6)  # 6: x, y, w, h, objectness, class 0 = person
    ops = ov.opset13
    columns = ops.constant(list(range(outputs)), ov.Type.i32)
    graph = ov.Model([ops.gather(table, columns, ops.constant(2, ov.Type.i32))], graph.get_parameters(), "people")
    info = {"kind": "decoded", "outputs": outputs, "input_px": fixed_px}
    save(graph, out, {**info, "model_name": source.name, "source_sha256": file_sha256(source)}, half=half)


def _check_onnx(graph: openvino.Model) -> list[int] | None:
    """The fixed [height, width] in px, or None where the graph takes any; GraphError where it is no YOLOv5."""
    refusal = "it is not a YOLOv5 export ([1,3,H,W] floats in, [1,N,5+classes] boxes out): {}"
    shape = graph.inputs[0].partial_shape
    if len(graph.inputs) != 1 or len(shape) != 4 or shape[1].is_dynamic or shape[1].get_length() != 3:
        raise GraphError(refusal.format(f"its inputs are {[str(i.partial_shape) for i in graph.inputs]}"))
    fixed = None if shape[2].is_dynamic or shape[3].is_dynamic else [shape[2].get_length(), shape[3].get_length()]
    height, width = fixed or (TRIAL_HEIGHT_PX, TRIAL_WIDTH_PX)
    if max(height, width) > MAX_SIDE_PX or height % 32 or width % 32:
        raise GraphError(refusal.format(f"its input is {width}x{height} px, not a multiple of 32 up to {MAX_SIDE_PX}"))
    graph.reshape([1, 3, height, width])
    found = graph.output(0).partial_shape
    rows = ANCHORS_PER_HEAD * sum(height // s * (width // s) for s in STRIDES_PX)
    if found.is_dynamic or len(found) != 3 or list(found.to_shape())[:2] != [1, rows] or found[2].get_length() < 5:
        raise GraphError(refusal.format(f"its first output is {found}, expected [1,{rows},5 or more]"))
    if fixed is None:
        graph.reshape([1, 3, -1, -1])
    return fixed


def convert_graph(source: Path, out: Path, *, half: bool) -> None:
    """A graph of ours (.xml and .bin) from elsewhere, the bundled one for instance: tried here, then copied."""
    graph = load_openvino().Core().read_model(source)
    info = {
        **read_info(graph),
        "model_name": source.name,
        "source_sha256": file_sha256(source, source.with_suffix(".bin")),
    }
    save(graph, out, info, half=half)


def _step_back() -> None:
    """Let the daemon and the camera go first: for the CPU, for memory, and as the one to be killed when it is short."""
    os.nice(10)
    os.umask(0o077)
    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, whose idle threads spin
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # a lower hard limit is in force already
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


CONVERTERS = {".pt": convert_checkpoint, ".onnx": convert_onnx, ".xml": convert_graph}


def main(arguments: list[str]) -> int:
    paths = [Path(argument) for argument in arguments if argument != "--half"]
    if len(paths) != 2 or paths[0].suffix not in CONVERTERS or paths[1].suffix != ".xml":
        sys.stderr.write("usage: python -m guardianberry.convert [--half] IN.pt|IN.onnx|IN.xml OUT.xml\n")
        return 2
    _step_back()
    try:
        CONVERTERS[paths[0].suffix](*paths, half="--half" in arguments)
    except Exception as error:  # noqa: BLE001 - the outermost frame of a process whose job is to say what went wrong
        reason = " ".join(str(error).split())[:500]
        sys.stderr.write(f"{reason if isinstance(error, ValueError) else type(error).__name__ + ': ' + reason}\n")
        return FAILED_HERE if isinstance(error, ImportError | MemoryError | OSError) else REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
