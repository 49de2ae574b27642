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
    *,
    width: int = 320,
    height: int = 240,
    frame_rate_fps: int = 10,
    intra_frames: int = 10,
    start_s: float = 100.0,
    b_frames: int = 0,
) -> Iterator[Unit]:
    """Endless; SPS and PPS before each key frame, evenly spaced from `start_s` on."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, frame_rate_fps), Fraction(frame_rate_fps)
    encoder.gop_size = intra_frames
    encoder.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "x264-params": f"repeat-headers=1:bframes={b_frames}:b-adapt=0:scenecut=0:keyint={intra_frames}"
        f":min-keyint={intra_frames}",
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


class _Bits:
    """Writes the codes of ITU-T H.264, 7.2 and 9.1."""

    def __init__(self) -> None:
        self.text = ""

    def fixed(self, length: int, value: int) -> None:
        self.text += f"{value:0{length}b}"

    def golomb(self, *values: int) -> None:
        for value in values:
            code = f"{value + 1:b}"
            self.text += "0" * (len(code) - 1) + code

    def nal(self, header: int) -> bytes:
        """With stop bit, emulation prevention and start code."""
        text = self.text + "1"
        payload = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
        escaped = bytearray()
        for byte in payload:
            if byte <= 3 and escaped[-2:] == b"\x00\x00":
                escaped.append(3)
            escaped.append(byte)
        return b"\x00\x00\x00\x01" + bytes([header]) + escaped


def parameter_sets(width: int, height: int, *, shown: tuple[int, int] | None = None, number: int = 0) -> bytes:
    """SPS and PPS of pictures coded with any size, cropped to `shown`; both have the id `number`."""
    sps, pps = _Bits(), _Bits()
    for byte in (66, 0, 62):  # Baseline, level 6.2
        sps.fixed(8, byte)
    sps.golomb(number, 0, 2, 1)  # id, log2_max_frame_num - 4, pic_order_cnt_type, max_num_ref_frames
    sps.fixed(1, 0)
    sps.golomb(width // 16 - 1, height // 16 - 1)
    sps.fixed(2, 0b11)  # frame_mbs_only, direct_8x8_inference
    sps.fixed(1, shown is not None)
    if shown is not None:
        sps.golomb(0, (width - shown[0]) // 2, 0, (height - shown[1]) // 2)
    sps.fixed(1, 0)  # no VUI
    pps.golomb(number, number)
    pps.fixed(2, 0)
    pps.golomb(0, 0, 0)
    pps.fixed(3, 0)
    pps.golomb(0, 0, 0)
    pps.fixed(3, 0b100)  # deblocking_filter_control_present
    return sps.nal(0x67) + pps.nal(0x68)


def grey_key_slice(width: int, height: int, *, number: int = 0, pps: int = 0) -> bytes:
    """An all-grey key picture: one byte a macroblock."""
    bits = _Bits()
    bits.golomb(0, 7, pps)  # first macroblock, I slice
    bits.fixed(4, 0)
    bits.golomb(number % 2)  # idr_pic_id: two key frames in a row differ
    bits.fixed(2, 0)
    bits.golomb(0, 1)  # slice_qp_delta, no deblocking
    bits.text += "00100111" * (width * height // 256)  # I_16x16 predicted from grey, no residual
    return bits.nal(0x65)


def repeating_slice(number: int, width: int, height: int, *, pps: int = 0) -> bytes:
    """The picture before once more, in some ten bytes, whatever the size."""
    bits = _Bits()
    bits.golomb(0, 5, pps)  # first macroblock, P slice
    bits.fixed(4, number % 16)
    bits.fixed(3, 0)
    bits.golomb(0, 1, width * height // 256)  # slice_qp_delta, no deblocking, all macroblocks skipped
    return bits.nal(0x61)


def hostile_video(width: int, height: int, count: int = 10, **settings) -> list[bytes]:
    """Access units: a key frame and `count - 1` that repeat it."""
    key = parameter_sets(width, height, **settings) + grey_key_slice(width, height)
    return [key, *(repeating_slice(number, width, height) for number in range(1, count))]
