"""Access units, ring, taps and pictures: real H.264 through a real pipe."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from guardianberry.camera import h264, ring, stream
from guardianberry.camera.decoder import MAX_WRONG_GUESSES, Decoder, Frame
from guardianberry.camera.h264 import AccessUnit, Guess, Splitter
from guardianberry.camera.ring import Ring, Tap
from guardianberry.camera.stream import Stream

WAIT_S = 20  # how long a test waits for what must happen; only a failing one waits so long
GENERATE_ONLY = (Phase.explicit, Phase.reuse, Phase.generate)  # finding the smallest counter-example takes minutes
GOP = 10
BLOCK_PX = 16  # the pictures count in binary: see pictures_of


def encode(count: int, *, width: int = 160, height: int = 96, gop: int = GOP, options: str = "") -> list[bytes]:
    """Access units; picture n shows n in binary, one white block a bit."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.gop_size = Fraction(1, 10), Fraction(10), gop
    params = f"repeat-headers=1:bframes=0:scenecut=0:keyint={gop}:min-keyint={gop}:{options}"
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": params}
    units = []
    for number in range(count):
        picture = np.full((height, width), 40, np.uint8)
        for bit in range(8):
            if number >> bit & 1:
                picture[16:48, bit * BLOCK_PX : (bit + 1) * BLOCK_PX] = 230
        picture[64:] = np.random.default_rng(number).integers(0, 255, (height - 64, width))  # some bytes to carry
        frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p")
        frame.pts = number
        units += [bytes(packet) for packet in encoder.encode(frame)]
    assert len(units) == count
    return units


def number_shown(luma: np.ndarray) -> int:
    return sum(1 << bit for bit in range(8) if luma[24:40, bit * BLOCK_PX + 4 : (bit + 1) * BLOCK_PX - 4].mean() > 128)


@pytest.fixture(scope="module")
def units() -> list[bytes]:
    return encode(60)


class Pipe:
    """A camera's end of the pipe, and the stream that reads the other one."""

    def __init__(self, **settings: object) -> None:
        read_end, self.fd = os.pipe()
        self.stream = Stream(read_end, **{"pre_roll_s": 3.0, **settings})

    def write(self, *pieces: bytes) -> None:
        for piece in pieces:
            while piece:
                piece = piece[os.write(self.fd, piece) :]

    def end(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def until(self, condition, what: str) -> None:
        give_up_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < give_up_s, what
            time.sleep(0.002)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.end()
    pipe.stream.close()


def queued(tap: Tap) -> list[AccessUnit]:
    """Every unit that is there now."""
    got = []
    while (unit := tap.get(0)) is not None:
        got.append(unit)
    return got


def drain(tap: Tap) -> list[AccessUnit]:
    """Every unit until the tap has ended."""
    got = []
    while (unit := tap.get(WAIT_S)) is not None:
        got.append(unit)
    assert tap.ended
    return got


# ---- Splitting


VARIANTS = {"plain": "", "four slices a picture": "slices=4", "with delimiters": "aud=1"}


@pytest.fixture(scope="module")
def variants() -> dict[str, list[bytes]]:
    return {name: encode(25, options=options) for name, options in VARIANTS.items()}


@settings(max_examples=60, deadline=None, phases=GENERATE_ONLY)
@given(
    variant=st.sampled_from(sorted(VARIANTS)),
    sizes=st.lists(st.one_of(st.integers(1, 40), st.integers(1, 9000)), min_size=1, max_size=30),
    junk=st.binary(max_size=200).filter(lambda junk: b"\x00\x00" not in junk and not junk.endswith(b"\x00")),
)
def test_units_are_split_without_loss_and_stamped_with_their_last_byte(variants, variant, sizes, junk) -> None:
    expected = variants[variant]
    data = junk + b"".join(expected)
    splitter, got, start = Splitter(), [], 0
    chunk_ends = []
    for size in itertools.cycle(sizes):
        if start >= len(data):
            break
        chunk_ends.append(min(start + size, len(data)))
        got += splitter.feed(data[start : start + size], float(len(chunk_ends)))
        start += size
    assert [unit.data for unit in got] == expected[:-1]
    assert [unit.number for unit in got] == list(range(len(got)))
    assert [unit.is_key for unit in got] == [number % GOP == 0 for number in range(len(got))]
    assert {(unit.width, unit.height) for unit in got} == {(160, 96)}
    ends = [len(junk) + end for end in itertools.accumulate(map(len, expected[:-1]))]
    assert [unit.arrival_s for unit in got] == [
        next(i + 1.0 for i, e in enumerate(chunk_ends) if e >= end) for end in ends
    ]


def test_key_units_get_the_parameter_sets_that_a_camera_without_inline_sends_once(units) -> None:
    bare = [unit[unit.index(b"\x00\x00\x01\x65") - 1 :] if n % GOP == 0 and n else unit for n, unit in enumerate(units)]
    got = Splitter().feed(b"".join(bare), 0)
    for unit in got:
        if unit.is_key:
            assert b"\x00\x00\x01\x67" in unit.data
            assert b"\x00\x00\x01\x68" in unit.data
            assert h264.picture_sizes(unit.data) == ((160, 96), (160, 96))


def test_another_picture_size_in_mid_stream_ends_it_and_the_units_before_are_kept(units) -> None:
    splitter = Splitter()
    got = splitter.feed(b"".join(units[:15] + encode(12, width=320, height=240)), 0)
    assert [unit.data for unit in got] == units[:15]
    assert splitter.fault == "the picture size changed from 160x96 to 320x240"
    assert splitter.feed(b"".join(units), 1) == []


def test_endless_garbage_is_bounded_and_the_video_after_it_is_found(units, monkeypatch) -> None:
    monkeypatch.setattr(h264, "MAX_UNIT_BYTES", 100_000)
    splitter = Splitter()
    tracemalloc.start()
    for _ in range(50):
        assert splitter.feed(b"\xa5" * 20_000, 0) == []
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 500_000, "of 1,000,000 that were fed"
    got = splitter.feed(b"".join(units), 1)
    assert [unit.data for unit in got[-50:]] == units[9:59]


# ---- Ring and taps


@settings(max_examples=200, deadline=None, phases=GENERATE_ONLY)
@given(
    gaps=st.lists(
        st.tuples(st.floats(0, 3), st.sampled_from([True, False, False, False]), st.integers(1, 500)),
        min_size=30,
        max_size=120,
    ),
    span_s=st.floats(0, 8),
)
def test_ring_begins_with_a_key_spans_the_pre_roll_and_is_bounded(gaps, span_s) -> None:
    held_ring, now_s, max_bytes = Ring(span_s, max_bytes=1500), 0.0, 1500
    first_key_s = None
    for number, (gap_s, is_key, size) in enumerate(gaps):
        now_s += gap_s
        held_ring.append(AccessUnit(number, now_s, is_key, bytes(size)))
        if first_key_s is None and is_key:
            first_key_s = now_s
        held = list(held_ring.units)
        if not held:
            assert first_key_s is None
            continue
        assert held[-1].number == number
        assert [unit.number for unit in held] == list(range(held[0].number, number + 1))
        assert held_ring.size_bytes == sum(len(unit.data) for unit in held) <= max_bytes
        held_s = now_s - held[0].arrival_s
        assert held_s <= span_s + ring.MAX_RING_GOP_S
        keys = [unit for unit in held if unit.is_key]
        if len(keys) > 1:
            assert keys[1].arrival_s > now_s - span_s  # no more than needed
        start = held_ring.start_of_clip(now_s, span_s / 2)
        assert start == next(
            (k for k in reversed(keys) if k.arrival_s <= now_s - span_s / 2), keys[0] if keys else None
        )


def test_ring_of_a_healthy_camera_begins_with_a_key_and_spans_the_pre_roll() -> None:
    held = Ring(3.0)
    for number in range(300):
        held.append(AccessUnit(number, number / 10, number % GOP == 0, b"x"))
        assert held.units[0].is_key
        assert number < 30 or number / 10 - held.units[0].arrival_s >= 3.0
        assert len(held.units) <= 30 + GOP + 1


def test_taps_opened_at_any_moment_lose_nothing_and_double_nothing(units) -> None:
    pipe = Pipe()
    taps = []

    def open_taps() -> None:
        while not pipe.stream.ended:
            taps.append(pipe.stream.open_tap(0))
            time.sleep(random.random() * 0.003)

    opener = threading.Thread(target=open_taps)
    opener.start()
    data = b"".join(units)
    cuts = sorted(random.sample(range(len(data)), 150))
    for start, end in itertools.pairwise([0, *cuts, len(data)]):
        pipe.write(data[start:end])
        time.sleep(0.001)
    pipe.end()
    opener.join()
    pipe.stream.close()
    assert len(taps) > 5
    early = [tap for tap in taps if not tap.ended][:200]
    for tap in early:
        got = drain(tap)
        assert got[0].is_key
        assert [unit.number for unit in got] == list(range(got[0].number, got[-1].number + 1))
        assert got[-1].number >= 58
        assert [unit.data for unit in got] == units[got[0].number : got[-1].number + 1]


def test_a_tap_begins_with_the_key_frame_before_the_pre_roll(units) -> None:
    now_s = itertools.count(100)
    pipe = Pipe(pre_roll_s=15.0, clock=lambda: next(now_s) / 1.0)
    everything = pipe.stream.open_tap(0)
    for number, unit in enumerate(units[:40]):
        pipe.write(unit)
        pipe.until(lambda n=number: pipe.stream.received_bytes >= sum(map(len, units[: n + 1])), "read")
    pipe.until(lambda: pipe.stream.next_number == 39, "units")
    arrivals = {unit.number: unit.arrival_s for unit in queued(everything)}
    at_s = arrivals[38]
    start_s = max(arrivals[n] for n in (0, 10, 20, 30) if arrivals[n] <= at_s - 15)
    assert pipe.stream.open_tap(at_s).get(0).arrival_s == start_s
    earliest = pipe.stream.open_tap(arrivals[20])  # there is not that much video: all of it
    assert earliest.get(0).arrival_s == pipe.stream.open_tap(0).get(0).arrival_s
    pipe.end()
    pipe.stream.close()


def test_a_tap_that_nobody_reads_is_bounded_and_keeps_a_beginning_without_gaps(pipe, units, monkeypatch) -> None:
    monkeypatch.setattr(ring, "MAX_TAP_BYTES", sum(map(len, units[:25])))
    tap = pipe.stream.open_tap(0)
    pipe.write(*units)
    pipe.until(lambda: pipe.stream.next_number >= 59, "the reader stops with the tap")
    assert not tap.is_open
    assert [unit.number for unit in drain(tap)] == list(range(25))


def test_a_closed_tap_gives_what_is_queued_and_no_more(pipe, units) -> None:
    tap = pipe.stream.open_tap(0)
    pipe.write(*units[:20])
    pipe.until(lambda: pipe.stream.next_number == 19, "units")
    tap.close()
    pipe.write(*units[20:])
    pipe.until(lambda: pipe.stream.next_number == 59, "units")
    assert [unit.number for unit in drain(tap)] == list(range(19))


# ---- Pictures


def test_the_newest_picture_is_given_once_and_is_what_the_camera_saw(pipe, units) -> None:
    seen = -1
    for written in (3, 4, 9, 26, 27, 59):
        pipe.write(*units[seen + 1 : written + 1])
        pipe.until(lambda n=written: pipe.stream.next_number >= n, "units")
        frame = pipe.stream.newest_frame(seen, WAIT_S)
        while frame.number < written:
            frame = pipe.stream.newest_frame(frame.number, WAIT_S)
        assert frame.number == number_shown(frame.luma()) == number_shown(frame.bgr[:, :, 1]) == written
        assert pipe.stream.newest_frame(frame.number, 0) is None
        assert pipe.stream.newest_frame(-1, 0.05) is None, "the same picture twice"
        seen = written


def test_a_slow_detector_skips_to_the_newest_frame_by_way_of_the_newest_key_frame(units) -> None:
    received = Splitter().feed(b"".join(units[:45]), 0)
    decoder = Decoder()
    assert decoder.decode(decoder.plan(-1, received[:5], None), -1).number == 4
    way = decoder.plan(4, received, None)
    assert [unit.number for unit in way] == [40, 41, 42, 43]
    frame = decoder.decode(way, 4)
    assert frame.number == number_shown(frame.luma()) == 43


def test_a_loop_that_asks_for_no_frame_never_delays_the_camera(units) -> None:
    pipe = Pipe()
    pipe.stream.open_tap(0)
    total = sum(map(len, units)) * 40
    assert total > 2 * stream.PIPE_BYTES
    writer = threading.Thread(target=lambda: pipe.write(*units * 40), daemon=True)
    writer.start()
    writer.join(WAIT_S)
    assert not writer.is_alive()
    pipe.until(lambda: pipe.stream.received_bytes == total, "read")
    pipe.end()
    pipe.stream.close()


def test_a_frame_is_decoded_when_the_camera_falls_silent_and_not_only_when_the_next_one_begins(
    pipe, units, caplog
) -> None:
    caplog.set_level("DEBUG")
    tap = pipe.stream.open_tap(0)
    for number, unit in enumerate(units[:25]):
        pipe.write(unit)
        frame = pipe.stream.newest_frame(number - 1, WAIT_S)
        assert frame is not None, "held back until the next picture"
        assert frame.number == number_shown(frame.luma()) == number
        assert pipe.stream.next_number == number, "a unit whose end is not certain was given out"
    pipe.write(units[25])
    pipe.until(lambda: pipe.stream.next_number == 25, "unit")
    assert "was not complete" not in caplog.text
    assert frame.arrival_s == queued(tap)[24].arrival_s


@pytest.mark.parametrize("variant", ["plain", "four slices a picture"])
def test_a_camera_that_pauses_within_access_units_costs_no_frame_and_three_wrong_guesses(
    variants, variant, caplog
) -> None:
    caplog.set_level("DEBUG")
    expected = variants[variant]
    pipe = Pipe()
    tap = pipe.stream.open_tap(0)
    shown = []
    after = -1

    def decode() -> None:
        nonlocal after
        frame = pipe.stream.newest_frame(after, 0.06)
        if frame is not None:
            after = frame.number
            shown.append((frame.number, number_shown(frame.luma())))

    for unit in expected:
        half = unit.rindex(b"\x00\x00\x01") if unit.count(b"\x00\x00\x01\x41") > 1 else len(unit) * 2 // 3
        pipe.write(unit[:half])
        decode()
        pipe.write(unit[half:])
        decode()
    pipe.end()
    assert [unit.data for unit in drain(tap)] == expected[: len(expected) - 1]
    assert caplog.text.count("was not complete") == MAX_WRONG_GUESSES, "it goes on guessing"
    assert all(number == picture for number, picture in shown), shown
    assert [number for number, _ in shown] == sorted({number for number, _ in shown})
    assert len(shown) >= 20
    assert "cannot be decoded" not in caplog.text
    pipe.stream.close()


def test_a_guess_that_proves_wrong_later_is_made_good_from_the_key_frame(units) -> None:
    real = [AccessUnit(number, number / 10, number == 0, data) for number, data in enumerate(units[:3])]
    guess = Guess(1, 0.1, False, units[10])  # decodes well, and is not what the camera meant
    decoder = Decoder()
    for guessed in (None, guess):
        assert decoder.decode(decoder.plan(-1, real[:1], guessed), -1) is not None
    assert decoder.plan(1, real[:2], None) == [], "the same picture twice"
    assert decoder.wrong_guesses == 1
    assert decoder.plan(1, real, None) == real
    assert number_shown(decoder.decode(real, 1).luma()) == 2


def test_half_a_picture_at_the_end_of_the_data_is_not_given_out(units) -> None:
    pipe = Pipe()
    tap = pipe.stream.open_tap(0)
    pipe.write(*units[:14], units[14][: len(units[14]) // 2])
    pipe.until(lambda: pipe.stream.next_number == 14, "units")
    while pipe.stream.newest_frame(12, 0.1) is not None:
        pass
    pipe.end()
    assert [unit.data for unit in drain(tap)] == units[:14]
    pipe.stream.close()


def test_a_picture_seen_whole_at_the_end_of_the_data_is_given_out(units) -> None:
    pipe = Pipe()
    tap = pipe.stream.open_tap(0)
    pipe.write(*units[:15])
    after = -1
    while after < 14:
        after = pipe.stream.newest_frame(after, WAIT_S).number
    pipe.end()
    assert [unit.data for unit in drain(tap)] == units[:15]
    pipe.stream.close()


# ---- Damage


def _junk(size: int) -> bytes:
    return random.Random(size).randbytes(size)


DAMAGE = {
    "junk between pictures": lambda u: [*u[:14], _junk(5000), *u[14:]],
    "junk that looks like pictures": lambda u: [
        *u[:14],
        *(b"\x00\x00\x01" + bytes([nal_header]) + _junk(500 + nal_header) for nal_header in (0x65, 0x41, 0x61, 0x68)),
        *u[14:],
    ],
    "half a picture": lambda u: [*u[:14], u[14][: len(u[14]) // 2], *u[15:]],
    "half a key frame": lambda u: [*u[:20], u[20][:40], *u[21:]],
    "pictures missing": lambda u: [*u[:13], *u[17:]],
    "no key frame at the beginning": lambda u: u[4:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_video_is_survived_and_pictures_come_again_with_the_next_key_frame(pipe, units, damage, caplog) -> None:
    pictures = []
    after = -1
    for piece in DAMAGE[damage](units):
        pipe.write(piece)
        frame = pipe.stream.newest_frame(after, 0.3)
        if frame is not None:
            assert frame.number > after
            after = frame.number
            pictures.append(number_shown(frame.luma()))
    after_damage = pictures[next(i for i, picture in enumerate(pictures) if picture > 40) :]
    assert after_damage == sorted(set(after_damage)), pictures
    assert len(after_damage) > 10
    assert after_damage[-1] >= 58
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) <= 1, "one line a spell"


def test_damage_is_logged_once_a_spell_and_its_beginning_is_known(units, caplog) -> None:
    decoder = Decoder()
    assert decoder.failing_since_s is None
    assert decoder.decode([AccessUnit(0, 0.0, True, units[0])], -1).number == 0
    for number in (1, 2):
        half = AccessUnit(number, 0.1 * number, False, units[number][: len(units[number]) // 2])
        assert decoder.decode([half], 0) is None
        assert decoder.failing_since_s == 0.1
    assert decoder.decode([AccessUnit(3, 5.0, True, units[10])], 2).number == 3
    assert decoder.failing_since_s is None
    assert caplog.text.count("cannot be decoded") == 1
    for number, arrival_s in ((4, 100.0), (5, 100.1)):
        decoder.decode([AccessUnit(number, arrival_s, False, units[1][:40])], number - 1)
    assert caplog.text.count("cannot be decoded") == 2


# ---- Ends


def test_closing_a_silent_stream_ends_its_thread_its_taps_and_its_descriptors(units) -> None:
    def descriptors() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(20):
        pipe = Pipe()
        pipe.write(*units[:5])
        tap = pipe.stream.open_tap(0)
        looker = threading.Thread(target=lambda p=pipe: [p.stream.newest_frame(99, WAIT_S)])
        looker.start()
        pipe.stream.close()
        pipe.stream.close()
        looker.join(WAIT_S)
        assert not looker.is_alive()
        assert pipe.stream.ended
        drain(tap)
        drain(pipe.stream.open_tap(0))
        pipe.end()
    assert descriptors() == before
    assert not [thread for thread in threading.enumerate() if thread.name == "camera-reader"]


def test_a_frame_that_is_kept_holds_no_copy_of_its_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    frame = Frame(7, 1.5, av.VideoFrame.from_ndarray(picture, format="bgr24"))
    assert np.array_equal(frame.bgr, picture)
    assert frame.bgr.flags.c_contiguous
    assert vars(frame).keys() == {"number", "arrival_s", "picture"}
