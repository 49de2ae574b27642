"""H.264 that was made to do harm: huge, thin and countless pictures, and what goes back and forth in time."""

from __future__ import annotations

import itertools
import os
import time
from fractions import Fraction

import av
import pytest

from guardianberry.camera import decoder as decoder_module
from guardianberry.camera import ring
from guardianberry.camera.decoder import Decoder, UnusableStreamError
from guardianberry.camera.h264 import AccessUnit, Splitter, has_small_pixels, slice_type
from guardianberry.camera.ring import Ring
from guardianberry.camera.stream import Stream
from tests.h264 import grey_key_slice, hostile_video, parameter_sets, repeating_slice, units

SIZES = {
    "huge": ((16000, 16000), None),
    "thin": ((16000, 16), (16000, 2)),
    "tall": ((64, 8192), None),
    "small": ((48, 48), None),
    "huge, of which little is shown": ((8000, 8000), (640, 480)),
    "thin, of which a part is shown": ((4096, 64), (4096, 62)),
    "more pixels than any level has": ((4096, 4096), None),
}


@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_a_size_that_no_camera_has_are_garbage(size) -> None:
    (width, height), shown = SIZES[size]
    splitter = Splitter()
    assert splitter.feed(b"".join(hostile_video(width, height, shown=shown)), 0) == []
    assert f"coded as {width}x{height}" in splitter.fault


@pytest.mark.parametrize(("width", "height"), [(64, 64), (640, 480), (1920, 1088), (4096, 2304)])
def test_pictures_of_a_size_that_cameras_have_are_decoded(width, height) -> None:
    splitter, decoder = Splitter(), Decoder()
    got = splitter.feed(b"".join(hostile_video(width, height, 3)), 0)
    assert splitter.fault == ""
    frame = decoder.decode(decoder.plan(-1, got, None), -1)
    assert (frame.number, frame.bgr.shape) == (1, (height, width, 3))


def encoded(pixel_format: str) -> bytes:
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 320, 240, pixel_format, Fraction(1, 10)
    encoder.options = {"tune": "zerolatency", "preset": "ultrafast"}
    pictures = [av.VideoFrame(320, 240, pixel_format) for _ in range(3)]
    for plane in (plane for picture in pictures for plane in picture.planes):
        plane.update(bytes(plane.buffer_size))  # x264 aborts at samples of more than 10 bits
    return b"".join(bytes(packet) for picture in (*pictures, None) for packet in encoder.encode(picture))


@pytest.mark.parametrize("pixel_format", ["yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le"])
def test_pixels_that_no_camera_sends_are_garbage(pixel_format) -> None:
    """4096 x 2304 in yuv444p10le is 57 MB a picture, of which the decoder may keep 17."""
    splitter = Splitter()
    assert splitter.feed(encoded(pixel_format), 0) == []
    assert "4:2:0" in splitter.fault


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "gray"])
def test_pixels_that_cameras_send_are_decoded(pixel_format) -> None:
    splitter, decoder = Splitter(), Decoder()
    got = splitter.feed(encoded(pixel_format), 0)
    assert splitter.fault == ""
    luma = decoder.decode(decoder.plan(-1, got, None), -1).luma()
    assert luma.shape == (240, 320)
    assert luma.max() <= 16, "black"


def test_pixels_cannot_be_hidden_behind_a_byte_that_the_decoder_leaves_out() -> None:
    """00 00 03 stands for 00 00: with the 03 this would be 4:2:0, without it is 4:4:4."""
    assert not has_small_pixels(b"\x67\x64\x00\x00\x03\x92\xc0")


def test_a_size_that_cannot_be_read_is_garbage() -> None:
    """A parameter set whose picture does not come with it could be used by any later one."""
    splitter = Splitter()
    sets = parameter_sets(16000, 16000)
    assert splitter.feed(sets[: sets.rindex(b"\x00\x00\x00\x01")] + b"".join(hostile_video(64, 64)[0:1]) * 2, 0) == []
    assert splitter.fault


def test_a_first_picture_that_comes_in_pieces_is_no_garbage() -> None:
    (key, *_), splitter = hostile_video(64, 64), Splitter()
    for cut in range(1, len(key)):
        splitter.feed(key[cut - 1 : cut], cut)
        splitter.guess()
    assert len(splitter.feed(key[-1:] + repeating_slice(1, 64, 64), len(key))) == 1
    assert splitter.fault == ""


@pytest.mark.parametrize("where", ["beside the first", "before a key frame", "before another picture"])
def test_a_second_parameter_set_is_refused_before_any_picture_can_use_it(where) -> None:
    big = parameter_sets(8000, 8000, number=1)
    small = hostile_video(64, 64, 6)
    position = {"beside the first": 0, "before another picture": 3, "before a key frame": 6}[where]
    video = [*small, *small]
    video[position] = big + video[position]
    if where == "beside the first":
        video[1] = repeating_slice(1, 8000, 8000, pps=1)
    splitter = Splitter()
    got = splitter.feed(b"".join(video), 0)
    assert [unit.data for unit in got] == video[:position]
    assert splitter.fault


def test_a_new_size_with_each_key_frame_ends_the_stream_at_the_second() -> None:
    splitter = Splitter()
    video = b"".join(unit for width in range(64, 640, 16) for unit in hostile_video(width, 64, 2))
    assert len(splitter.feed(video, 0)) == 2
    assert splitter.fault == "the picture size changed from 64x64 to 80x64"


def test_pictures_of_a_few_bytes_are_bounded_by_their_number(caplog) -> None:
    read_end, write_end = os.pipe()
    stream = Stream(read_end, pre_roll_s=3.0)
    tap = stream.open_tap(0)
    key, *rest = hostile_video(64, 64, 16)
    count = 2 * ring.MAX_TAP_UNITS
    tail = b"".join(itertools.islice(itertools.cycle(rest), count))
    with os.fdopen(write_end, "wb") as camera:
        camera.write(key + tail)
    give_up_s = time.monotonic() + 20
    while not stream.ended and time.monotonic() < give_up_s:
        time.sleep(0.01)
    stream.close()
    queued = 0
    while tap.get(0) is not None:
        queued += 1
    assert queued == ring.MAX_TAP_UNITS
    assert "behind the camera; it ends here" in caplog.text
    held = Ring(8.0)
    for number in range(3 * ring.MAX_RING_UNITS):
        held.append(AccessUnit(number, 0.0, number == 0, rest[0]))
        assert len(held.units) <= ring.MAX_RING_UNITS
    for number in range(3 * ring.MAX_RING_UNITS):
        held.append(AccessUnit(number, 0.0, number % 10 == 0, rest[0]))
        assert len(held.units) <= ring.MAX_RING_UNITS
        assert number < ring.MAX_RING_UNITS or held.units[0].is_key


def test_decoding_that_would_stop_the_main_loop_is_given_up(monkeypatch) -> None:
    """Some ten bytes a frame, and each takes as long to decode as a frame of a 9-megapixel camera."""
    monkeypatch.setattr(decoder_module, "MAX_DECODE_S", 0.1)
    got = Splitter().feed(b"".join(hostile_video(4096, 2304, 500)), 0)
    decoder = Decoder()
    with pytest.raises(UnusableStreamError, match=r"decoding \d+ of 499 frames took"):
        decoder.decode(decoder.plan(-1, got, None), -1)


def test_b_frames_are_refused_with_the_option_that_turns_them_off() -> None:
    with_b = [unit.data for unit in units(30, b_frames=2)]
    splitter = Splitter()
    got = splitter.feed(b"".join(with_b), 0)
    assert "--low-latency" in splitter.fault
    assert len(got) < 3
    assert [unit.data for unit in got] == with_b[: len(got)]


def test_slice_types_are_read_or_not_there() -> None:
    assert slice_type(grey_key_slice(64, 64)[4:]) == 7
    assert slice_type(repeating_slice(1, 64, 64)[4:]) == 5
    for broken in (b"", b"\x41", b"\x41\x00\x00", b"\x41" + bytes(40), b"\x41\x80"):
        assert slice_type(broken) == -1
