"""The access units that the camera sends."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from stand_in_camera import CameraError, say, setting
from stand_in_camera.options import bitrate_bps_of, codec_options_of, frame_rate_of, size_of, uses_libav

# The defaults of the hardware encoder.
VC4_BITRATE_BPS = 10_000_000
VC4_INTRA_FRAMES = 60
# Of libx264 without --low-latency: B-frames, and the first access unit comes with the seventh frame.
LIBAV_DELAY = {"bf": "5", "x264-params": "b-adapt=0:rc-lookahead=0:sync-lookahead=0"}
SCENE = Path(__file__).resolve().parents[1] / "scene.mp4"


class Unit(NamedTuple):
    """One access unit; empty while the encoder holds its first frames back."""

    data: bytes
    is_key: bool
    passes: int  # through the video, before this frame
    source_s: float  # where in the video it was taken


class VideoFile:
    """The frames of a file by time: a frame is shown from its own time to that of the next."""

    def __init__(self, path: str, at_end: str, start_s: float) -> None:
        self.path, self.at_end, self.passes = path, at_end, 0
        self._begun_s = -start_s  # on the stream's clock, where this pass began
        self._end_s = 0.0  # of the pass, on the video's clock; known once it is decoded
        self._open()
        if self._next is None:
            raise CameraError(f"stand-in: no picture in {path}")
        self._shown = self._next

    def _open(self) -> None:
        import av

        try:
            self.container = av.open(self.path)
            self.stream = self.container.streams.video[0]
        except (OSError, IndexError) as error:
            raise CameraError(f"stand-in: cannot play {self.path}: {error}") from None
        self.stream.codec_context.thread_count = 1
        self._frames = self._decode()
        self._next: tuple[float, Any] | None = next(self._frames, None)

    def _decode(self) -> Iterator[tuple[float, Any]]:
        import av

        first_s = None
        period_s = float(1 / (self.stream.average_rate or 30))
        with suppress(av.error.InvalidDataError):  # a damaged tail ends the video
            for frame in self.container.decode(self.stream):
                time_s = frame.time if frame.time is not None else self._end_s
                first_s = time_s if first_s is None else first_s
                self._end_s = time_s - first_s + period_s
                yield time_s - first_s, frame

    def frame_at(self, time_s: float) -> tuple[float, Any] | None:
        """The time in the video and the frame that is shown; None when the video is over and nothing follows."""
        while True:
            position_s = time_s - self._begun_s + 1e-6
            while self._next is not None and self._next[0] <= position_s:
                self._shown = self._next
                self._next = next(self._frames, None)
            if self._next is not None or position_s < self._end_s:
                return self._shown
            self.passes += 1
            if self.at_end == "exit":
                return None
            if self.at_end == "hold":
                return self._shown
            self._begun_s = time_s
            self.container.close()
            self._open()


class EncodedVideo:
    """A video file, encoded as the camera of this persona does."""

    may_skip = True

    def __init__(self, options: dict[str, Any], persona: str, video: VideoFile) -> None:
        self.options, self.persona, self.video = options, persona, video
        self.rate = frame_rate_of(options)
        self.resize(*size_of(options))

    def resize(self, width_px: int, height_px: int) -> None:
        import av

        self.size_px = (width_px & ~1, height_px & ~1)
        self._encoder = av.CodecContext.create("libx264", "w")
        self._encoder.width, self._encoder.height = self.size_px
        self._encoder.pix_fmt = "yuv420p"
        self._encoder.framerate = self.rate
        self._encoder.time_base = 1 / self.rate
        self._encoder.thread_count = 1
        self._set_rate_and_structure()
        self._graph: Any = None
        self._is_first = True
        self._sources_s: dict[int, float] = {}  # where in the video those frames are that the encoder holds

    def _set_rate_and_structure(self) -> None:
        options, is_libav = self.options, uses_libav(self.options, self.persona)
        intra = options["intra"] or (int(self.rate) if is_libav else VC4_INTRA_FRAMES)
        self._encoder.gop_size = max(1, intra)
        self._encoder.options = {"preset": "ultrafast", "sc_threshold": "0", "bf": "0"}
        bitrate_bps = bitrate_bps_of(options)
        if not is_libav:
            bitrate_bps = bitrate_bps or VC4_BITRATE_BPS
            self._encoder.options |= {"tune": "zerolatency", "maxrate": str(bitrate_bps), "bufsize": str(bitrate_bps)}
        elif options["low-latency"]:
            slices = min(4, os.cpu_count() or 1)
            self._encoder.options |= {"tune": "zerolatency", "slices": str(slices)}
        else:
            self._encoder.options |= LIBAV_DELAY
        if options["profile"]:
            self._encoder.options |= {"profile": options["profile"]}
        if is_libav:
            wanted = codec_options_of(options)
            if wanted.get("tune") == "zerolatency":
                self._encoder.options = {k: v for k, v in self._encoder.options.items() if k != "x264-params"}
            self._encoder.options |= wanted
        if bitrate_bps:
            self._encoder.bit_rate = bitrate_bps

    def unit(self, number: int) -> Unit | None:
        shown = self.video.frame_at(float(number / self.rate))
        if shown is None:
            return None
        self._sources_s[number], frame = shown
        picture = self._fit(frame)
        picture.pts, picture.time_base = number, 1 / self.rate
        picture.pict_type = 0  # the source's key frames must not become ours
        packets = self._encoder.encode(picture)
        is_key = any(packet.is_keyframe for packet in packets)
        data = b"".join(bytes(packet) for packet in packets)
        source_s = 0.0
        for packet in packets:
            source_s = self._sources_s.pop(packet.pts, source_s)
        if is_key and not self._is_first and not uses_libav(self.options, self.persona) and not self.options["inline"]:
            data = without_headers(data)
        self._is_first = self._is_first and not data
        return Unit(data, is_key, self.video.passes, source_s)

    def _fit(self, frame: Any) -> Any:
        """The picture at the size asked for: scaled without distortion, black bars around it."""
        import av

        if (frame.width, frame.height) == self.size_px and frame.format.name == "yuv420p":
            return frame
        if self._graph is None:
            size = f"{self.size_px[0]}:{self.size_px[1]}"
            self._graph = av.filter.Graph()
            self._graph.link_nodes(
                self._graph.add_buffer(template=self.video.stream),
                self._graph.add("scale", f"{size}:force_original_aspect_ratio=decrease:force_divisible_by=2"),
                self._graph.add("pad", f"{size}:(ow-iw)/2:(oh-ih)/2"),
                self._graph.add("format", "yuv420p"),
                self._graph.add("buffersink"),
            ).configure()
        self._graph.push(frame)
        return self._graph.pull()


def without_headers(data: bytes) -> bytes:
    """An Annex-B access unit without its SPS (7) and PPS (8)."""
    starts = [match.start() for match in re.finditer(b"\x00?\x00\x00\x01", data)] + [len(data)]
    nals = [data[start:end] for start, end in pairwise(starts)]
    return b"".join(nal for nal in nals if nal[nal.index(1) + 1] & 31 not in (7, 8))


class Replay:
    """Access units of an Annex-B file, as they are."""

    may_skip = False  # a missing unit would break the pictures that follow

    def __init__(self, path: str, at_end: str) -> None:
        import av

        parser = av.CodecContext.create("h264", "r")
        try:
            packets = [*parser.parse(Path(path).read_bytes()), *parser.parse(None)]
        except OSError as error:
            raise CameraError(f"stand-in: cannot play {path}: {error}") from None
        self._units = [(bytes(packet), packet.is_keyframe) for packet in packets]
        self._at_end = at_end

    def resize(self, width_px: int, height_px: int) -> None:
        say("stand-in: a replayed stream keeps its size")

    def unit(self, number: int) -> Unit | None:
        passes, index = divmod(number, len(self._units))
        if passes and self._at_end != "loop":
            return None
        data, is_key = self._units[index]
        return Unit(data, is_key, passes, float(index))


def open_source(options: dict[str, Any], persona: str) -> EncodedVideo | Replay:
    at_end = setting("AT_END", "loop", ("loop", "exit", "hold"))
    try:
        import av  # noqa: F401  (late: a refusal must not wait for it)
    except ImportError:
        raise CameraError(f"stand-in: {sys.executable} has no PyAV; put a Python that has it first on PATH") from None
    if "STAND_IN_H264" in os.environ:
        return Replay(os.environ["STAND_IN_H264"], at_end)
    path = os.environ.get("STAND_IN_VIDEO") or str(SCENE)
    return EncodedVideo(options, persona, VideoFile(path, at_end, float(os.environ.get("STAND_IN_START_S", "0"))))
