"""MP4 files of the camera's own packets: written, and repaired after a kill.

Every frame is a fragment of its own and is written at once, so that a killed process loses one frame. At the close
`hybrid_fragmented` turns the file into an ordinary seekable MP4 (seen with FFmpeg 8.1.2, which is in PyAV 18.1.0).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from guardianberry.disk import fsync_path
from guardianberry.filenames import PART_PREFIX, VideoName, free_path
from guardianberry.mp4_boxes import read_boxes

if TYPE_CHECKING:
    from guardianberry.camera.h264 import AccessUnit

WRITE_ERRORS = (OSError, av.error.FFmpegError)
READ_ERRORS = (*WRITE_ERRORS, ValueError)  # PyAV raises ValueError for text that is not UTF-8, among others

_TICKS_PER_S = 90_000  # the usual time base of video; arrival times are exact to 11 us
_TIME_BASE = Fraction(1, _TICKS_PER_S)
_MUX_OPTIONS = {
    "movflags": "hybrid_fragmented+frag_every_frame",
    "flush_packets": "1",
    "video_track_timescale": str(_TICKS_PER_S),
}


class Mp4Writer:
    """One H.264 track, copied into `path` with the arrival times of its access units. The first is a key frame.

    Each method raises one of WRITE_ERRORS when the disk takes no more. What was written before stays readable, and
    `close` must still be called.
    """

    def __init__(self, path: Path, *, width: int, height: int, frame_rate_fps: float) -> None:
        self._frame_ticks = round(_TICKS_PER_S / frame_rate_fps)
        self._first_arrival_s: float | None = None
        self._last_ticks = -1
        self._container = av.open(str(path), "w", format="mp4", options=_MUX_OPTIONS)
        self._stream = self._container.add_mux_stream(
            "h264", rate=Fraction(frame_rate_fps).limit_denominator(1000), width=width, height=height
        )

    @property
    def is_readable(self) -> bool:
        """After a kill the file would hold a frame: each frame reaches the file when the next one is written."""
        return self._last_ticks > 0

    @property
    def duration_s(self) -> float:
        """From the first frame to the end of the last."""
        return (self._last_ticks + self._frame_ticks) / _TICKS_PER_S if self._last_ticks >= 0 else 0.0

    def duration_with_s(self, unit: AccessUnit) -> float:
        """What `duration_s` would be after writing `unit`."""
        return (self._ticks(unit) + self._frame_ticks) / _TICKS_PER_S

    def write(self, unit: AccessUnit) -> None:
        ticks = self._ticks(unit)
        if self._first_arrival_s is None:
            self._first_arrival_s = unit.arrival_s
        packet = av.Packet(unit.data)
        packet.pts = packet.dts = ticks
        packet.duration = self._frame_ticks
        packet.time_base = _TIME_BASE
        packet.is_keyframe = unit.is_key
        packet.stream = self._stream
        self._container.mux(packet)
        self._last_ticks = ticks

    def close(self) -> None:
        self._container.close()

    def _ticks(self, unit: AccessUnit) -> int:
        if self._first_arrival_s is None:
            return 0
        # Units that were read together have one arrival time, but in an MP4 each is later than the one before.
        return max(self._last_ticks + 1, round((unit.arrival_s - self._first_arrival_s) * _TICKS_PER_S))


def close_killed_file(path: Path, *, frame_rate_fps: float) -> float:
    """Replace the clip of a killed process by an ordinary MP4 of the same packets; returns its duration in seconds.

    Raises one of READ_ERRORS where it holds no readable frame or the copy cannot be written; the file is as before.
    A hostile file can also crash the process, or take all its memory and time (see `finish_child.py`).
    """
    part = path.with_name(PART_PREFIX + path.name)
    part.unlink(missing_ok=True)  # never written through a link
    try:
        duration_s = _copy_packets(path, part, frame_rate_fps=frame_rate_fps)
        fsync_path(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return duration_s


def _copy_packets(source: Path, target: Path, *, frame_rate_fps: float) -> float:
    with _open_mp4(source) as killed:
        stream = _only_stream(killed)
        with av.open(str(target), "w", format="mp4", options=_MUX_OPTIONS) as out:
            copy = out.add_stream_from_template(stream)
            end_s = 0.0
            for packet in killed.demux(stream):
                if packet.dts is None or packet.is_corrupt or packet.time_base is None:
                    continue
                end_s = _end_s(packet, frame_rate_fps)
                packet.stream = copy
                out.mux(packet)
    if end_s <= 0:
        raise OSError("it holds no frame")
    return end_s


def _only_stream(container: InputContainer) -> VideoStream:
    # There is no context where the codec is not known.
    if [getattr(stream.codec_context, "name", None) for stream in container.streams] != ["h264"]:
        raise OSError("it holds something else than one H.264 video")
    return container.streams.video[0]


def cut_to_whole_fragments(path: Path, *, frame_rate_fps: float) -> float:
    """Cut off the incomplete fragment at the end of a file; returns the duration in seconds of what is left.

    For a full disk: it needs no space. Raises one of READ_ERRORS.
    """
    whole_end_bytes = 0
    with path.open("r+b") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        with contextlib.suppress(ValueError):
            for box in read_boxes(file.fileno(), size_bytes):
                if box.name != b"moof" and box.end_bytes <= size_bytes:  # the media of a moof follows it
                    whole_end_bytes = box.end_bytes
        if whole_end_bytes:
            file.truncate(whole_end_bytes)
    with _open_mp4(path) as container:
        return max((_end_s(packet, frame_rate_fps) for packet in container.demux(video=0)), default=0.0)


def _open_mp4(path: Path) -> InputContainer:
    """To read. No other format or codec is tried, and damaged text in a title does not matter."""
    return av.open(str(path), format="mp4", options={"codec_whitelist": "h264"}, metadata_errors="replace")


def _end_s(packet: av.Packet, frame_rate_fps: float) -> float:
    """When the frame of a packet ends; 0 for the empty packet at the end of a file."""
    if packet.dts is None or packet.time_base is None:
        return 0.0
    duration_s = float((packet.duration or 0) * packet.time_base) or 1 / frame_rate_fps
    return float(packet.dts * packet.time_base) + duration_s


def finish_file(
    path: Path, name: VideoName, duration_s: float, max_duration_s: float, final_name: Callable[[VideoName], str]
) -> Path:
    """Give a closed clip its final name, once its data are on the disk. Raises OSError."""
    fsync_path(path)
    name = dataclasses.replace(name, duration=round(min(max(0.0, duration_s), int(max_duration_s))))
    target = path.with_name(final_name(name))
    if target.exists():
        target = free_path(path.parent, name)
    path.rename(target)
    fsync_path(target.parent)
    return target
