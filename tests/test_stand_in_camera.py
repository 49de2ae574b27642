"""The stand-in camera as its users meet it: a process with rpicam-vid's command line, faults on request."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from av.video.frame import PictureType

from tests.s3_server import free_port

STAND_IN = Path(__file__).resolve().parents[1] / "demo" / "rpicam-vid"
PATIENCE_S = 20.0  # for anything that must happen; a busy machine is no failure
SOURCE_FPS = 30
SOURCE_FRAMES = 15
F_SETPIPE_SZ = 1031


def write_video(
    path: Path, *, width_px: int = 64, height_px: int = 48, noise: bool = False, fps: int = SOURCE_FPS
) -> Path:
    """A short clip in which every frame is brighter than the one before."""
    random = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        for index in range(SOURCE_FRAMES):
            picture = np.full((height_px, width_px, 3), 60 + 5 * index, np.uint8)
            if noise:
                picture = random.integers(0, 256, picture.shape, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "brighter.mp4")


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(video: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts the stand-in with those arguments and STAND_IN_... settings; whatever still runs is killed at the end."""
    running = []

    def run(*arguments: str, stdout: int = subprocess.PIPE, **settings: object) -> subprocess.Popen[bytes]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STAND_IN_")}
        clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean.get('PATH', '')}"
        settings = {"VIDEO": video, "LOG": tmp_path / "log.jsonl"} | settings
        clean |= {f"STAND_IN_{name}": str(value) for name, value in settings.items()}
        process = subprocess.Popen([STAND_IN, "-n", *arguments], stdout=stdout, stderr=subprocess.PIPE, env=clean)
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[bytes]) -> tuple[bytes, str, int]:
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    return stdout, stderr.decode(), process.returncode


def log_of(folder: Path) -> list[dict]:
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"never happened: {what}"
        time.sleep(0.01)


def wait_for_frames(folder: Path, count: int) -> None:
    wait_for(lambda: len(log_of(folder)) >= count, f"{count} frames")


def wait_for_fault(folder: Path) -> None:
    wait_for(lambda: any("fault" in line for line in log_of(folder)), "the fault")


def stream(frames: int = 12, fps: int = 60) -> list[str]:
    return f"-t 0 --frames {frames} --framerate {fps} --width 64 --height 48 --flush -o -".split()


FOR_EVER = "-t 0 --framerate 30 --width 64 --height 48 --intra 5 --inline --flush -o -".split()


def decode(data: bytes) -> tuple[list[av.Packet], list[av.VideoFrame]]:
    decoder = av.CodecContext.create("h264", "r")
    packets = [*decoder.parse(data), *decoder.parse(None)]
    frames = [frame for packet in packets for frame in decoder.decode(packet)]
    return packets, frames + decoder.decode(None)


def key_numbers(data: bytes) -> list[int]:
    return [number for number, packet in enumerate(decode(data)[0]) if packet.is_keyframe]


def nal_types(packet: av.Packet) -> list[int]:
    return [part[0] & 31 for part in bytes(packet).split(b"\x00\x00\x01")[1:]]


# --- command line ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--foo"], "unrecognised option '--foo'"),
        (["-z"], "unrecognised option '-z'"),
        (["--width"], "the required argument for option '--width' is missing"),
        (["--width", "wide"], "the argument ('wide') for option '--width' is invalid"),
    ],
)
def test_bad_command_lines_end_with_255_and_the_real_message(start: Start, arguments: list[str], message: str) -> None:
    stdout, stderr, code = finish(start(*arguments))
    assert (stdout, stderr, code) == (b"", f"ERROR: *** {message} ***\n", 255)


@pytest.mark.parametrize("persona", ["vc4", "pi5"])
def test_every_model_lists_and_takes_the_libav_options(start: Start, persona: str) -> None:
    stdout, _, code = finish(start("--help", PERSONA=persona))
    assert code == 0
    for option in (b"--low-latency", b"--libav-format", b"--libav-video-codec-opts", b"--mode"):
        assert option in stdout
    libav = ["--low-latency", "--libav-format", "h264", "--libav-video-codec-opts", "maxrate=2500000;bufsize=2500000"]
    video, stderr, code = finish(start(*stream(3), *libav, PERSONA=persona))
    assert (code, len(decode(video)[1])) == (0, 3), stderr
    for option in (b"-n [ --nopreview ]", b"--inline", b"-g [ --intra ]", b"-b [ --bitrate ]", b"--flush", b"--listen"):
        assert option in stdout


def test_long_options_take_an_equals_sign_and_short_ones_a_letter(start: Start) -> None:
    arguments = "-t0 --frames=8 --framerate=60 --width=64 --height=48 -g4 -b 1000000 --flush -o-".split()
    stdout, stderr, code = finish(start(*arguments))
    assert code == 0, stderr
    assert key_numbers(stdout) == [0, 4]


def test_a_pi_5_refuses_stdout_without_a_format(start: Start) -> None:
    _, stderr, code = finish(start("-o", "-", PERSONA="pi5"))
    assert (stderr, code) == (
        "ERROR: *** libav: cannot allocate output context, try setting with --libav-format ***\n",
        255,
    )


def test_a_stray_word_and_verbose_0_are_taken(start: Start) -> None:
    stdout, stderr, code = finish(start(*stream(3), "--verbose", "0", "stray"))
    assert (code, len(decode(stdout)[1])) == (0, 3), stderr


def test_it_says_who_it_is_and_lists_sensor_modes_with_their_crops(start: Start) -> None:
    stdout, _, code = finish(start("--version"))
    assert code == 0
    assert stdout.startswith(b"rpicam-apps build: v1.12.0")
    assert b"\nrpicam-apps capabilites:" in stdout
    assert b" libav:1\n" in stdout
    stdout, _, code = finish(start("--list-cameras", SENSOR="imx708"))
    assert code == 0
    assert b"\n0 : imx708 [4608x2592 10-bit RGGB] (/base/" in stdout
    assert b"'SRGGB10_CSI2P' : 1536x864 [120.13 fps - (768, 432)/3072x1728 crop]\n" in stdout


def test_on_a_pi_5_stderr_has_chatter_of_libav_and_x264(start: Start) -> None:
    _, stderr, _ = finish(start(*stream(2), "--libav-format", "h264", PERSONA="pi5"))
    for chatter in ("[libx264 @ 0x", "Stream #0:0: Video: h264", "Side data:", "cpb: bitrate max/min/avg"):
        assert chatter in stderr


def test_process_lists_show_the_name_of_the_real_program(start: Start, tmp_path: Path) -> None:
    process = start(*FOR_EVER, stdout=subprocess.DEVNULL)
    wait_for_frames(tmp_path, 1)
    assert psutil.Process(process.pid).name() == "rpicam-vid"


# --- the stream ---


def test_the_stream_decodes_with_key_frames_as_asked_headers_before_each_and_no_b_frames(start: Start) -> None:
    stdout, stderr, code = finish(start(*stream(24), "--intra", "10", "--inline", "--bitrate", "2000000"))
    assert code == 0, stderr
    packets, frames = decode(stdout)
    assert key_numbers(stdout) == [0, 10, 20]
    assert all(nal_types(packets[number])[:2] == [7, 8] for number in (0, 10, 20))
    assert len(frames) == 24
    assert {frame.pict_type for frame in frames} == {PictureType.I, PictureType.P}
    assert (frames[0].width, frames[0].height, frames[0].format.name) == (64, 48, "yuv420p")


def test_without_inline_only_the_first_key_frame_has_headers(start: Start) -> None:
    packets, frames = decode(finish(start(*stream(24), "--intra", "10"))[0])
    with_headers = [number for number, packet in enumerate(packets) if {7, 8} & set(nal_types(packet))]
    assert with_headers == [0]
    assert len(frames) == 24


@pytest.mark.parametrize(("extra", "has_b_frames"), [([], True), (["--low-latency"], False)])
def test_a_pi_5_makes_b_frames_unless_latency_is_to_be_low(start: Start, extra: list[str], has_b_frames: bool) -> None:
    process = start(*stream(24), "--inline", "--libav-format", "h264", *extra, PERSONA="pi5")
    frames = decode(finish(process)[0])[1]
    assert (PictureType.B in {frame.pict_type for frame in frames}) == has_b_frames


def test_low_latency_of_a_pi_5_has_slices_and_without_it_six_frames_are_held_back(start: Start, tmp_path: Path) -> None:
    arguments = [*stream(12), "--inline", "--libav-format", "h264"]
    slow = decode(finish(start(*arguments, PERSONA="pi5"))[0])[0]
    assert log_of(tmp_path)[0]["number"] == 6
    assert {nal_types(packet).count(1) + nal_types(packet).count(5) for packet in slow} == {1}
    fast = decode(finish(start(*arguments, "--low-latency", PERSONA="pi5"))[0])[0]
    assert len(fast) == 12
    slices = {nal_types(packet).count(1) + nal_types(packet).count(5) for packet in fast}
    assert slices == {min(4, os.cpu_count() or 1)}


def test_a_pi_5_bounds_its_bit_rate_only_where_it_is_asked_to(start: Start, tmp_path: Path) -> None:
    noise = write_video(tmp_path / "noise.mp4", width_px=320, height_px=240, noise=True)
    arguments = "-t 0 --frames 20 --framerate 60 --width 320 --height 240 --bitrate 500000 -o - --low-latency".split()
    arguments += ["--libav-format", "h264"]
    bounds = ["--libav-video-codec-opts", "maxrate=625000;bufsize=62500"]
    free = len(finish(start(*arguments, VIDEO=noise, PERSONA="pi5"))[0])
    bound = len(finish(start(*arguments, *bounds, VIDEO=noise, PERSONA="pi5"))[0])
    assert bound < free * 0.8


def test_a_pi_5_writes_in_pieces_of_32_kib(start: Start, tmp_path: Path) -> None:
    noise = write_video(tmp_path / "noise.mp4", width_px=640, height_px=480, noise=True)
    arguments = "-t 0 --frames 2 --framerate 5 --width 640 --height 480 --bitrate 9000000 -o - --low-latency".split()
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps what is written together
    with reading, writing:
        start(*arguments, "--libav-format", "h264", VIDEO=noise, PERSONA="pi5", stdout=writing.fileno())
        writing.close()
        sizes = list(iter(lambda: len(reading.recv(2**20)), 0))
    assert max(sizes) == 32 * 1024
    assert len(sizes) > 2


def test_bitrate_is_honoured(start: Start, tmp_path: Path) -> None:
    noise = write_video(tmp_path / "noise.mp4", width_px=320, height_px=240, noise=True)
    size = "-t 0 --frames 60 --framerate 60 --width 320 --height 240 --intra 30 --flush -o -".split()
    low, high = (len(finish(start(*size, "--bitrate", bitrate, VIDEO=noise))[0]) for bitrate in ("2000000", "8000000"))
    assert low < high / 2
    assert low < 2 * 2_000_000 / 8


def test_a_faster_source_is_thinned_out_by_time(start: Start, tmp_path: Path) -> None:
    finish(start(*stream(5, fps=10)))
    assert [round(line["source_s"] * SOURCE_FPS) for line in log_of(tmp_path)] == [0, 3, 6, 9, 12]


def test_a_slower_source_is_shown_longer(start: Start, tmp_path: Path) -> None:
    slow = write_video(tmp_path / "slow.mp4", fps=10)
    finish(start(*stream(6, fps=20), VIDEO=slow))
    assert [round(line["source_s"] * 10) for line in log_of(tmp_path)] == [0, 0, 1, 1, 2, 2]


def test_frames_do_not_come_before_their_time(start: Start, tmp_path: Path) -> None:
    finish(start(*stream(9, fps=20)))
    lines = log_of(tmp_path)
    assert lines[-1]["monotonic_s"] - lines[0]["monotonic_s"] >= 0.38


def test_another_shape_gets_black_bars_and_no_distortion(start: Start, tmp_path: Path) -> None:
    flat = write_video(tmp_path / "flat.mp4", width_px=128, height_px=32)
    frame = decode(finish(start(*stream(2), "--width", "64", "--height", "48", VIDEO=flat))[0])[1][0]
    luma = frame.to_ndarray(format="gray")[:, 32].astype(int)
    assert luma.shape == (48,)
    assert luma[:14].max() < 30
    assert luma[18:30].min() > 50
    assert luma[34:].max() < 30


def test_a_reader_that_is_slow_costs_whole_frames_and_the_rest_decodes(start: Start, tmp_path: Path) -> None:
    noise = write_video(tmp_path / "noise.mp4", noise=True)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, F_SETPIPE_SZ, 4096)
    process = start(*stream(20, fps=30), "--bitrate", "8000000", stdout=writing, VIDEO=noise)
    os.close(writing)
    data = os.read(reading, 100)
    time.sleep(0.5)
    with os.fdopen(reading, "rb") as file:
        data += file.read()
    assert process.wait(PATIENCE_S) == 0
    numbers = [line["number"] for line in log_of(tmp_path)]
    assert len(numbers) == 20
    assert max(b - a for a, b in pairwise(numbers)) > 6
    assert len(decode(data)[1]) == 20


@pytest.mark.parametrize(("flush", "is_complete"), [(["--flush"], True), ([], False)])
def test_only_flush_gets_every_byte_out_at_once(
    start: Start, tmp_path: Path, flush: list[str], is_complete: bool
) -> None:
    arguments = [word for word in FOR_EVER if word != "--flush"] + flush
    process = start(*arguments, FAULT="hangs@0.2")
    wait_for_fault(tmp_path)
    os.set_blocking(process.stdout.fileno(), False)
    received = process.stdout.read() or b""
    assert (len(received) == sum(line.get("bytes", 0) for line in log_of(tmp_path))) == is_complete


# --- the end of the video ---


def test_at_the_end_it_starts_over(start: Start, tmp_path: Path) -> None:
    end_file = tmp_path / "end"
    assert finish(start(*stream(13, fps=20), END_FILE=end_file))[2] == 0
    source_s = [line["source_s"] for line in log_of(tmp_path)]
    assert source_s[10] == 0.0
    assert sorted(source_s[:10]) == source_s[:10]
    assert end_file.exists()


def test_at_the_end_it_ends_if_asked_to(start: Start, tmp_path: Path) -> None:
    end_file = tmp_path / "end"
    stdout, _, code = finish(start(*stream(99, fps=20), AT_END="exit", END_FILE=end_file))
    assert (code, len(decode(stdout)[1])) == (0, 10)
    assert end_file.exists()


def test_at_the_end_it_holds_the_last_picture_if_asked_to(start: Start, tmp_path: Path) -> None:
    finish(start(*stream(14, fps=20), AT_END="hold"))
    source_s = [line["source_s"] for line in log_of(tmp_path)]
    assert len(source_s) == 14
    assert {round(position_s * SOURCE_FPS) for position_s in source_s[10:]} == {SOURCE_FRAMES - 1}


def test_before_the_end_nothing_is_touched(start: Start, tmp_path: Path) -> None:
    finish(start(*stream(5, fps=20), END_FILE=tmp_path / "end"))
    assert not (tmp_path / "end").exists()


def test_it_can_begin_in_the_middle(start: Start, tmp_path: Path) -> None:
    finish(start(*stream(2, fps=10), START_S="0.2"))
    assert [round(line["source_s"] * SOURCE_FPS) for line in log_of(tmp_path)] == [6, 9]


def test_a_stream_on_disk_is_replayed_byte_for_byte(start: Start, tmp_path: Path) -> None:
    recorded = finish(start(*stream(10), "--intra", "5", "--inline"))[0]
    (tmp_path / "stream.h264").write_bytes(recorded)
    stdout, stderr, _ = finish(start(*stream(25), H264=tmp_path / "stream.h264"))
    assert stdout == recorded * 2 + b"".join(bytes(packet) for packet in decode(recorded)[0][:5]), stderr


# --- faults ---


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no-camera", "ERROR: *** no cameras available ***"),
        ("unplugged", "ERROR: *** no cameras available ***"),
        ("busy", "ERROR: *** failed to acquire camera /base/soc/i2c0mux/i2c@1/stand-in@10 ***"),
        ("no-permission", "ERROR: *** no cameras available ***"),
        ("no-encoder", "ERROR: *** Unable to find an appropriate H.264 codec ***"),
    ],
)
def test_a_launch_without_a_camera_fails_as_the_real_one_does(start: Start, fault: str, message: str) -> None:
    stdout, stderr, code = finish(start(*FOR_EVER, FAULT=fault))
    assert (stdout, stderr.splitlines()[-1], code) == (b"", message, 255)


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("no-library", 127, "rpicam-vid: error while loading shared libraries: libcamera.so"),
        ("no-driver", 255, "ERROR: *** rpicam-apps currently only supports the Raspberry Pi platforms."),
    ],
)
@pytest.mark.parametrize("arguments", [["--help"], ["--list-cameras"], FOR_EVER])
def test_any_launch_can_fail_even_for_help(start: Start, fault: str, code: int, message: str, arguments) -> None:
    stdout, stderr, returned = finish(start(*arguments, FAULT=fault))
    assert (stdout, returned) == (b"", code)
    assert stderr.startswith(message)


def test_a_mistyped_fault_is_refused(start: Start) -> None:
    _, stderr, code = finish(start(*FOR_EVER, FAULT="explodes"))
    assert (stderr, code) == ("ERROR: *** stand-in: no such fault: 'explodes' ***\n", 255)


@pytest.mark.parametrize(("fault", "code"), [("dies@0.2", 255), ("dies@0.2:7", 7), ("dies@0.2:-11", -11)])
def test_it_dies(start: Start, tmp_path: Path, fault: str, code: int) -> None:
    stdout, stderr, returned = finish(start(*FOR_EVER, FAULT=fault))
    assert returned == code
    assert len(decode(stdout)[1]) == len(log_of(tmp_path)) - 1 >= 1
    assert stderr.splitlines()[-1].startswith("ERROR: ***")


def test_it_ends_in_the_middle_of_an_access_unit(start: Start, tmp_path: Path) -> None:
    stdout, _, code = finish(start(*FOR_EVER, FAULT="half@0.2"))
    sent = sum(line.get("bytes", 0) for line in log_of(tmp_path))
    assert code == 255
    assert len(stdout) > sent > 0


def test_it_hangs_deaf_to_sigint_and_dies_of_sigterm(start: Start, tmp_path: Path) -> None:
    process = start(*FOR_EVER, FAULT="hangs@0.2", stdout=subprocess.DEVNULL)
    wait_for_fault(tmp_path)
    lines = len(log_of(tmp_path))
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    assert len(log_of(tmp_path)) == lines
    process.terminate()
    assert process.wait(PATIENCE_S) == -signal.SIGTERM


def test_garbage_takes_the_place_of_frames_and_then_stops(start: Start, tmp_path: Path) -> None:
    stdout, _, code = finish(start(*FOR_EVER, "--frames", "20", FAULT="garbage@0.15:0.2"))
    assert code == 0
    lines = [line for line in log_of(tmp_path) if "bytes" in line]
    offset, kinds = 0, []
    for line in lines:
        is_unit = stdout[offset:].startswith(b"\x00\x00\x00\x01")
        assert is_unit != line["garbage"]
        kinds.append(is_unit)
        offset += line["bytes"]
    assert (kinds[0], kinds[-1], all(kinds)) == (True, True, False)


def test_the_resolution_changes_in_mid_stream(start: Start) -> None:
    arguments = [word for word in FOR_EVER if word != "--inline"]
    stdout, _, _ = finish(start(*arguments, "--frames", "16", FAULT="resolution@0.2:32x24"))
    sizes = [(frame.width, frame.height) for frame in decode(stdout)[1]]
    assert sizes[0] == (64, 48)
    assert sizes[-1] == (32, 24)
    assert len(sizes) == 16


def test_a_pause_leaves_a_gap_in_time_and_a_valid_stream(start: Start, tmp_path: Path) -> None:
    stdout, _, _ = finish(start(*FOR_EVER, "--frames", "12", FAULT="pause@0.2:0.5"))
    times_s = [line["monotonic_s"] for line in log_of(tmp_path) if "bytes" in line]
    assert max(b - a for a, b in pairwise(times_s)) >= 0.5
    assert len(decode(stdout)[1]) == 12


def test_a_fault_by_control_file_strikes_once(start: Start, tmp_path: Path) -> None:
    control = tmp_path / "control"
    process = start(*FOR_EVER, stdout=subprocess.DEVNULL, CONTROL=control)
    wait_for_frames(tmp_path, 3)
    assert process.poll() is None
    control.write_text("die 3")
    assert finish(process)[2] == 3
    assert control.read_text() == ""
    assert finish(start(*stream(3), CONTROL=control))[2] == 0


def test_a_hang_by_control_file_ends_when_the_file_says_ok(start: Start, tmp_path: Path) -> None:
    control = tmp_path / "control"
    start(*FOR_EVER, stdout=subprocess.DEVNULL, CONTROL=control)
    wait_for_frames(tmp_path, 3)
    control.write_text("hang")
    wait_for_fault(tmp_path)
    lines = len(log_of(tmp_path))
    time.sleep(0.2)
    assert len(log_of(tmp_path)) == lines
    control.write_text("ok")
    wait_for_frames(tmp_path, lines + 3)


def test_an_unplugged_camera_falls_silent_and_is_gone_until_the_file_says_ok(start: Start, tmp_path: Path) -> None:
    control = tmp_path / "control"
    process = start(*FOR_EVER, stdout=subprocess.DEVNULL, CONTROL=control)
    wait_for_frames(tmp_path, 3)
    control.write_text("unplugged")
    wait_for_fault(tmp_path)
    lines = len(log_of(tmp_path))
    time.sleep(0.2)
    assert len(log_of(tmp_path)) == lines
    process.kill()
    assert [finish(start(*stream(3), CONTROL=control))[2] for _ in range(2)] == [255, 255]
    control.write_text("ok")
    assert finish(start(*stream(3), CONTROL=control))[2] == 0


# --- ends and connections ---


def test_sigint_ends_a_running_stream_cleanly(start: Start, tmp_path: Path) -> None:
    process = start(*FOR_EVER, stdout=subprocess.DEVNULL)
    wait_for_frames(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    assert finish(process)[2] == 0


def test_it_ends_after_the_time_given(start: Start) -> None:
    assert finish(start(*FOR_EVER, "-t", "200", stdout=subprocess.DEVNULL))[2] == 0


@pytest.mark.parametrize(
    ("persona", "reason"),
    [("vc4", "failed to write output bytes"), ("pi5", "libav: error writing output: Broken pipe")],
)
def test_it_aborts_when_its_reader_leaves(start: Start, persona: str, reason: str) -> None:
    process = start(*FOR_EVER, "--libav-format", "h264", PERSONA=persona)
    assert process.stdout.read(100)
    process.stdout.close()
    assert process.wait(PATIENCE_S) == -signal.SIGABRT
    assert reason in process.stderr.read().decode()


def connect(port: int) -> socket.socket:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline_s, "nobody listens"
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("persona", "reason"), [("vc4", "failed to send data on socket"), ("pi5", "libav: error writing output:")]
)
def test_a_listening_camera_serves_one_client_and_aborts_when_it_leaves(
    start: Start, persona: str, reason: str
) -> None:
    port = free_port()
    process = start(*FOR_EVER[:-2], "--listen", "-o", f"tcp://127.0.0.1:{port}", PERSONA=persona)
    with connect(port) as client:
        assert client.recv(100)[:4] == b"\x00\x00\x00\x01"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    _, stderr, code = finish(process)
    assert code == -signal.SIGABRT
    assert reason in stderr


def test_without_listen_it_connects_to_a_server(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        output = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        process = start(*stream(8)[:-2], "-o", output)
        connection = server.accept()[0]
        with connection, connection.makefile("rb") as file:
            data = file.read()
    assert finish(process)[2] == 0
    assert len(decode(data)[1]) == 8


def test_no_server_is_an_error(start: Start) -> None:
    _, stderr, code = finish(start(*FOR_EVER[:-2], "-o", f"tcp://127.0.0.1:{free_port()}"))
    assert (stderr.splitlines()[-1], code) == ("ERROR: *** connect to server failed ***", 255)


# --- the clip that the demo plays ---


def test_the_demo_scene_is_there_and_of_the_size_the_daemon_asks_for() -> None:
    with av.open(str(STAND_IN.parent / "scene.mp4")) as container:
        stream_ = container.streams.video[0]
        assert (stream_.width, stream_.height, float(stream_.average_rate)) == (640, 480, 10.0)
        assert 25 <= stream_.frames / stream_.average_rate <= 31
