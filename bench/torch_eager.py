"""What the original did for every frame, in plain PyTorch: fused f32 network, 80 classes, decoding and NMS in torch.

Written for comparison only. It shares the network's modules with the converter, and nothing with the daemon's detector.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from guardianberry.detection import yolov5
from guardianberry.detection.detector import Person

CLASS_OFFSET_PX = 7680  # keeps boxes of different classes from suppressing each other, as YOLOv5 does


class TorchEager:
    """`find_people` as in `guardianberry.detection.detector`, computed as the original computes it."""

    def __init__(self, checkpoint: Path, *, conf_thres: float, iou_thres: float, max_det: int, threads: int) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._model = yolov5.fuse(yolov5.load_checkpoint(checkpoint))
        self._conf_thres, self._iou_thres, self._max_det = conf_thres, iou_thres, max_det
        self._grids: dict[tuple[int, int, int], torch.Tensor] = {}

    @torch.inference_mode()
    def find_people(self, frame_bgr: np.ndarray, *, input_width_px: int = 0) -> list[Person]:
        height_px, width_px = frame_bgr.shape[:2]
        scale = (input_width_px or width_px) / width_px
        if scale != 1:
            size = (round(width_px * scale), round(height_px * scale))
            frame_bgr = cv2.resize(frame_bgr, size, interpolation=cv2.INTER_LINEAR)
        image = np.ascontiguousarray(frame_bgr[:, :, ::-1].transpose(2, 0, 1))
        images = torch.from_numpy(image).float()[None] / 255
        rows = self._suppress(self._decode(self._model(images)))
        people = rows[rows[:, 5] == yolov5.PERSON_CLASS]
        boxes = people[:, :4] / scale
        boxes[:, 0::2].clamp_(0, width_px)
        boxes[:, 1::2].clamp_(0, height_px)
        return [Person(*box, score) for box, score in zip(boxes.tolist(), people[:, 4].tolist(), strict=True)]

    def _decode(self, heads: list[torch.Tensor]) -> torch.Tensor:
        """All boxes of all heads: [n, 85] of centre, size, objectness and class scores."""
        detect, tables = self._model.detect, []
        for index, raw in enumerate(heads):
            _, _, rows, columns = raw.shape
            cells = raw.view(detect.na, detect.no, rows, columns).permute(0, 2, 3, 1).sigmoid()
            stride = float(detect.stride[index])
            centre = (cells[..., 0:2] * 2 - 0.5 + self._grid(rows, columns)) * stride
            size = (cells[..., 2:4] * 2) ** 2 * (detect.anchors[index] * stride).view(-1, 1, 1, 2)
            tables.append(torch.cat((centre, size, cells[..., 4:]), -1).view(-1, detect.no))
        return torch.cat(tables)

    def _grid(self, rows: int, columns: int) -> torch.Tensor:
        key = (rows, columns, 0)
        if key not in self._grids:
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            self._grids[key] = torch.stack((x, y), -1).float()
        return self._grids[key]

    def _suppress(self, table: torch.Tensor) -> torch.Tensor:
        """[n, 6]: corners, score, class; best first."""
        table = table[table[:, 4] > self._conf_thres]
        score, kind = (table[:, 5:] * table[:, 4:5]).max(1)
        half = table[:, 2:4] / 2
        rows = torch.cat((table[:, :2] - half, table[:, :2] + half, score[:, None], kind[:, None].float()), 1)
        rows = rows[score > self._conf_thres]
        rows = rows[rows[:, 4].argsort(descending=True)]
        boxes = rows[:, :4] + rows[:, 5:6] * CLASS_OFFSET_PX
        return rows[_nms(boxes, self._iou_thres)[: self._max_det]]


def _nms(boxes: torch.Tensor, iou_thres: float) -> list[int]:
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive, kept = torch.ones(len(boxes), dtype=torch.bool), []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        kept.append(i)
        low = torch.maximum(boxes[i, :2], boxes[i + 1 :, :2])
        high = torch.minimum(boxes[i, 2:], boxes[i + 1 :, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        alive[i + 1 :] &= shared <= iou_thres * (area[i] + area[i + 1 :] - shared)
    return kept
