"""Real H.264 for tests: access units of a moving square, as a Pi's encoder makes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np


class Unit(NamedTuple):
    arrival_s: float
    is_key: bool
    data: bytes
    width: int
    height: int


def access_units(
    *, width: int = 320, height: int = 240, frame_rate_fps: int = 10, intra_frames: int = 10, start_s: float = 100.0
) -> Iterator[Unit]:
    """Endless; no B-frames, SPS and PPS before each key frame, evenly spaced from `start_s` on."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, frame_rate_fps), Fraction(frame_rate_fps)
    encoder.gop_size = intra_frames
    encoder.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "x264-params": f"repeat-headers=1:bframes=0:scenecut=0:keyint={intra_frames}:min-keyint={intra_frames}",
    }
    for number in itertools.count():
        picture = np.full((height, width, 3), 60, np.uint8)
        x = number * 7 % (width - 40)
        picture[50:90, x : x + 40] = 220
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = number, encoder.time_base
        for packet in encoder.encode(frame):
            yield Unit(start_s + number / frame_rate_fps, packet.is_keyframe, bytes(packet), width, height)


def units(count: int, **settings) -> list[Unit]:
    return list(itertools.islice(access_units(**settings), count))


def decode(path) -> tuple[int, float, bool]:
    """Frames decoded, duration in seconds by the packets, and whether the first is a key frame; raises on any error."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.dts is not None]
        end = packets[-1].dts + (packets[-1].duration or 0)
        duration_s = float((end - packets[0].dts) * stream.time_base)
        first_is_key = packets[0].is_keyframe
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.options = {"err_detect": "explode"}
        frames = sum(1 for _ in container.decode(video=0))
    return frames, duration_s, first_is_key
