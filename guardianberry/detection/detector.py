"""Frame in, people out: YOLOv5's letterbox, decoding and non-maximum suppression around a graph.

Only `OpenVinoRuntime` knows OpenVINO; another runtime implements `Runtime`.
"""

import logging
import mmap
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from guardianberry.detection.openvino_model import load_openvino, read_info
from guardianberry.detection.postprocess import Array, Head, Letterbox, Person, suppress
from guardianberry.detection.regions import Region
from guardianberry.detection.weights import Graph, WeightsError

log = logging.getLogger(__name__)

CUT_PX = 2  # a box that comes so close to the edge of a crop is of somebody whom the crop cuts
SLOW_INFERENCE_MS = 1000.0  # an alert takes three inferences and the upload: 5 s are over
MAX_CANDIDATES = 30_000  # YOLOv5's max_nms: only so many boxes, the best, enter the suppression


class Runtime(Protocol):
    """What the detector needs of a program that runs networks. `info`: see `openvino_model.read_info`."""

    info: dict[str, Any]

    def prepare(self, height_px: int, width_px: int) -> None: ...
    def infer(self, frames: Array) -> list[Array]: ...


def advice_if_slow(inference_ms: float) -> str:
    """What to change where inferences take so long that alerts come later than 5 s; empty where they do not."""
    if inference_ms <= SLOW_INFERENCE_MS:
        return ""
    return (
        f"an inference takes {inference_ms / 1000:.1f} s, and an alert needs three: it comes later than 5 s. "
        "Set DETECTOR_INPUT_WIDTH_PX lower, or WEIGHTS to a smaller model, such as yolov5n.pt."
    )


class OpenVinoRuntime:
    """Runs one graph on the CPU. `precision`: "" for the fastest of this CPU (bf16, fp16 or f32), or "f32".

    Raises WeightsError if the graph cannot be read.
    """

    def __init__(self, xml: Path, *, precision: str, threads: int) -> None:
        self._ov = load_openvino()
        self._core = self._ov.Core()
        # No CACHE_DIR: it saves 0.1 to 0.2 s at the start, and OpenVINO does not detect a damaged file in it.
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            **({"INFERENCE_PRECISION_HINT": precision} if precision else {}),
        }
        try:
            with xml.with_suffix(".bin").open("rb") as file:
                # Must stay as long as the network, which does not hold them.
                self._weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            weights = self._ov.Tensor(np.frombuffer(self._weights, np.uint8), shared_memory=True)
            self._graph = self._core.read_model(xml.read_text(encoding="utf-8"), weights)
            self.info = read_info(self._graph)
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise WeightsError(f"{xml} cannot be used: {reason}. Delete it; the next start makes it again.") from error

    def prepare(self, height_px: int, width_px: int) -> None:
        """Compile for inputs of this size, which takes about 0.1 s. Raises WeightsError if that fails."""
        try:
            self._graph.reshape([1, height_px, width_px, 3])
            self._request = self._core.compile_model(self._graph, "CPU", self._settings).create_infer_request()
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise WeightsError(f"No network for an input of {width_px}x{height_px} px: {reason}") from error
        self._weights.madvise(mmap.MADV_DONTNEED)  # it has its own; what it needs of these is read from the file again
        self._outputs = [self._request.get_output_tensor(i).data for i in range(len(self._graph.outputs))]

    def infer(self, frames: Array) -> list[Array]:
        """`frames`: uint8 [1, height, width, 3], read in place. The next call overwrites the returned arrays."""
        self._request.set_input_tensor(self._ov.Tensor(frames, shared_memory=True))
        self._request.infer()
        return self._outputs


class Detector:
    """Finds people in frames. Compiled for `frame_width_px` x `frame_height_px`; another size is compiled anew.

    `input_width_px` is the long side of the network's input (0: that of the frame). `last_ms` is how long the last
    inference took. Not thread-safe.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        frame_width_px: int,
        frame_height_px: int,
        input_width_px: int = 0,
        conf_thres: float,
        iou_thres: float,
        max_det: int,
        precision: str = "",
        threads: int = 1,
        runtime: Runtime | None = None,
    ) -> None:
        self.model_name = graph.model_name
        self.last_ms = 0.0
        self._input_width_px = input_width_px
        self._conf_thres, self._iou_thres, self._max_det = conf_thres, iou_thres, max_det
        self._runtime: Runtime = runtime or OpenVinoRuntime(graph.xml, precision=precision, threads=threads)
        info = self._runtime.info
        self._heads = [
            Head(stride, np.array(anchors, np.float32), info["outputs"])
            for stride, anchors in zip(info["strides_px"], info["anchors_px"], strict=True)
        ]
        self._fit(frame_height_px, frame_width_px)

    def _fit(self, height_px: int, width_px: int) -> None:
        self.input_width_px = self._input_width_px or max(height_px, width_px)
        letterbox = Letterbox(height_px, width_px, self.input_width_px)
        started_s = time.monotonic()
        self._runtime.prepare(*letterbox.input_px)
        self._letterbox = letterbox
        self._crop_letterboxes: dict[tuple[int, int], Letterbox] = {}
        rows, columns = letterbox.input_px
        took_ms = (time.monotonic() - started_s) * 1000
        log.info(
            "%s is ready for %dx%d frames (input %dx%d) after %.0f ms",
            *(self.model_name, width_px, height_px, columns, rows, took_ms),
        )

    def measure_ms(self) -> float:
        """How long an inference on a grey frame takes. Where the first one is slow, the second counts."""
        grey_bgr = np.full((*self._letterbox.frame_px, 3), 114, np.uint8)
        for _ in range(2):
            self.find_people(grey_bgr)
            if self.last_ms <= SLOW_INFERENCE_MS:
                break
        return self.last_ms

    def find_people(self, frame_bgr: Array, crop: Region | None = None) -> list[Person]:
        """People in a uint8 BGR frame [height, width, 3], highest confidence first. Other arrays: ValueError.

        With `crop` the network sees only that part of the frame, enlarged to its input. Boxes are in the frame's
        pixels all the same; those cut by an edge of the crop that is no edge of the frame are left out.
        """
        started_s = time.monotonic()
        if frame_bgr.dtype != np.uint8 or frame_bgr.shape[2:] != (3,):
            raise ValueError(f"not a BGR frame of bytes: {frame_bgr.dtype} {frame_bgr.shape}")
        if frame_bgr.shape[:2] != self._letterbox.frame_px:
            self._fit(*frame_bgr.shape[:2])
        if crop is None:
            people = self._infer(frame_bgr, self._letterbox)
        else:
            left, top, right, bottom = crop
            letterbox = self._letterbox_of_crop(bottom - top, right - left)
            people = _into_frame(self._infer(frame_bgr[top:bottom, left:right], letterbox), crop, frame_bgr.shape)
        self.last_ms = (time.monotonic() - started_s) * 1000
        return people

    def _infer(self, picture_bgr: Array, letterbox: Letterbox) -> list[Person]:
        outputs = self._runtime.infer(letterbox.pack(picture_bgr))
        found = [head.decode(raw, self._conf_thres) for head, raw in zip(self._heads, outputs, strict=True)]
        return self._people(np.concatenate(found), letterbox)

    def _letterbox_of_crop(self, height_px: int, width_px: int) -> Letterbox:
        """Into the same network input as the whole frame, because another one would be compiled anew."""
        size = (height_px, width_px)
        if size not in self._crop_letterboxes:
            letterbox = Letterbox(*size, self.input_width_px)
            if letterbox.input_px != self._letterbox.input_px:
                raise ValueError(f"a crop of {width_px}x{height_px} has another shape than the frame")
            self._crop_letterboxes[size] = letterbox
        return self._crop_letterboxes[size]

    def _people(self, rows: Array, letterbox: Letterbox) -> list[Person]:
        """From [n, 5] rows (centre x, y, width, height, score) in input pixels."""
        rows = rows[np.argsort(-rows[:, 4], kind="stable")[:MAX_CANDIDATES]]
        half = rows[:, 2:4] / 2
        corners = np.concatenate((rows[:, :2] - half, rows[:, :2] + half), 1)
        kept = suppress(corners, self._iou_thres, self._max_det)
        boxes = letterbox.unpack(corners[kept])
        return [Person._make([*box, score]) for box, score in zip(boxes.tolist(), rows[kept, 4].tolist(), strict=True)]


def _into_frame(people: list[Person], crop: Region, frame_shape: tuple[int, ...]) -> list[Person]:
    """From pixels of the crop to pixels of the frame, without those that the crop cuts."""
    left, top, right, bottom = crop
    height_px, width_px = frame_shape[:2]
    moved = (Person(p.x1 + left, p.y1 + top, p.x2 + left, p.y2 + top, p.confidence) for p in people)
    return [
        p
        for p in moved
        if (left == 0 or p.x1 >= left + CUT_PX)
        and (top == 0 or p.y1 >= top + CUT_PX)
        and (right == width_px or p.x2 <= right - CUT_PX)
        and (bottom == height_px or p.y2 <= bottom - CUT_PX)
    ]
