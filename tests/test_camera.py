"""The camera's supervision, on throw-away camera programs: real processes, real pipes, real signals."""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import detect_and_upload as script
from guardianberry import machine
from guardianberry.camera import decoder as camera_decoder
from guardianberry.camera import process as camera_process
from guardianberry.camera import supervisor as camera_module
from guardianberry.camera.command import Offer, Settings, command_line, find_program
from guardianberry.camera.modes import mode_for, parse_sensors
from guardianberry.camera.other_users import running_cameras, uid_of_other_end
from guardianberry.camera.process import CameraError, CameraProcess, fault_of_exit
from guardianberry.camera.supervisor import Camera, fault_of_stream
from guardianberry.settings import find_problems, option_names
from tests.h264 import hostile_video, units
from tests.s3_server import free_port

WAIT_S = 30  # for what must happen; only a failing test waits so long
STALL_S = 1.0  # a busy machine must not look like a camera that hangs

# What every fake camera can do. It needs no package, so it starts quickly even on a busy machine.
PRELUDE = """
    import os, signal, socket, struct, sys, time
    HERE = os.path.dirname(os.path.abspath(__file__))
    OPTIONS = "--low-latency --libav-format --libav-video-codec-opts --mode --rotation --hflip -v"
    MODES = "    Modes: 'SRGGB10_CSI2P' : 640x480 [206.65 fps - (1000, 752)/1280x960 crop]\\n" + " " * 29 + (
        "1640x1232 [41.85 fps - (0, 0)/3280x2464 crop]")
    if "--help" in sys.argv:
        print(" arg\\n".join(OPTIONS.split(" ")))
        sys.exit(0)
    if "--list-cameras" in sys.argv:
        print("0 : imx219 [3280x2464 10-bit RGGB] (/base/imx219@10)\\n" + MODES)
        sys.exit(0)
    with open(os.path.join(HERE, "launches"), "a") as launches:
        launches.write("%d %s\\n" % (os.getpid(), " ".join(sys.argv[1:])))
    LAUNCH = sum(1 for _ in open(os.path.join(HERE, "launches")))
    def say(text): sys.stderr.write(text + "\\n"); sys.stderr.flush()
    def pictures(name="video"):
        data = open(os.path.join(HERE, name), "rb").read()
        while data:
            size, = struct.unpack("<I", data[:4])
            yield data[4:4 + size]
            data = data[4 + size:]
    def play(count=40, to=1, pause_s=0.02, name="video"):
        for _, picture in zip(range(count), pictures(name)):
            os.write(to, picture)
            time.sleep(pause_s)
    def deaf():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE): signal.signal(number, signal.SIG_IGN)
    def hang():
        while True: time.sleep(1)
    def become(uid): os.setgroups([]); os.setgid(uid); os.setuid(uid)
    def accept():
        listener = socket.create_server(("127.0.0.1", int(sys.argv[-1].rpartition(":")[2])))
        return listener.accept()[0]
"""
FOREVER = "while True: play()"


class Bench:
    """A folder on PATH with a camera program in it, and the Camera that uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.camera: Camera | None = None
        self.others: list[subprocess.Popen] = []
        folder.mkdir()
        self.record("video", units(40, width=160, height=96))

    def record(self, name: str, video) -> None:
        pictures = [unit if isinstance(unit, bytes) else unit.data for unit in video]
        data = b"".join(len(picture).to_bytes(4, "little") + picture for picture in pictures)
        (self.folder / name).write_bytes(data)

    def program(self, body: str, name: str = "rpicam-vid") -> Path:
        path = self.folder / name
        path.write_text(f"#!{sys.executable} -IS\n" + textwrap.dedent(PRELUDE) + textwrap.dedent(body) + "\n")
        path.chmod(0o755)
        return path

    def use(self, **settings: object) -> Camera:
        defaults = {
            "width_px": 160,
            "height_px": 96,
            "frame_rate_fps": 10,
            "bitrate_bps": 1_000_000,
            "stream_url": "tcp://127.0.0.1:8888",
            "pre_roll_s": 1.0,
            "stall_s": STALL_S,
            "wait_for_other_users": False,
        }
        self.camera = Camera(**{**defaults, **settings})
        return self.camera

    def by_hand(self, *arguments: str, name: str = "rpicam-vid") -> subprocess.Popen:
        process = subprocess.Popen([self.folder / name, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.others.append(process)
        return process

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Runs the loop's part until the condition holds."""
        give_up_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < give_up_s, what
            self.camera.check_and_launch_libcamera()
            self.camera.newest_frame(timeout_s=0.02)

    def until_gone_to_another_user(self, processes: list[subprocess.Popen]) -> None:
        give_up_s = time.monotonic() + WAIT_S
        while any(psutil.Process(process.pid).uids().real == 0 for process in processes):
            assert time.monotonic() < give_up_s
            time.sleep(0.01)

    def until_somebody_listens(self, port: int) -> None:
        give_up_s = time.monotonic() + WAIT_S
        while not any(
            f":{port:04X} " in line and " 0A " in line
            for table in ("tcp", "tcp6")
            for line in Path("/proc/net", table).read_text().splitlines()
        ):
            assert time.monotonic() < give_up_s
            time.sleep(0.01)

    def until_pictures(self) -> None:
        self.until(lambda: self.camera.newest_frame(timeout_s=0.1), "no picture")

    @property
    def launches(self) -> list[tuple[int, str]]:
        path = self.folder / "launches"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(line.split(" ")[0]), line.partition(" ")[2]) for line in lines]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{bench.folder}:/usr/bin:/bin")
    # The suite may not depend on what else runs on this machine.
    monkeypatch.setattr(camera_module, "running_cameras", lambda: [c for c in running_cameras() if is_ours(c.pid)])
    monkeypatch.setattr(camera_module, "FIRST_BYTE_S", 3.0)
    monkeypatch.setattr(camera_module, "BACK_OFF_S", (0.05, 0.1, 0.2))
    yield bench
    if bench.camera is not None:
        bench.camera.stop()
    for process in bench.others:
        process.kill()
        process.communicate()


def is_ours(pid: int) -> bool:
    try:
        return os.getpid() in [parent.pid for parent in psutil.Process(pid).parents()]
    except psutil.NoSuchProcess:
        return False


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def zombies() -> list[int]:
    return [child.pid for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- Starting


def test_video_comes_from_the_program_on_path_with_the_agreed_command_line(bench, caplog) -> None:
    caplog.set_level("INFO")
    bench.program(FOREVER)
    bench.use()
    bench.until_pictures()
    bench.until(lambda: bench.camera.state == "streaming", "not announced")
    ((pid, arguments),) = bench.launches
    assert arguments == (
        "-n -t 0 --width 160 --height 96 --framerate 10 --inline --intra 10 --bitrate 1000000 --codec h264 --flush "
        "--low-latency --libav-format h264 --libav-video-codec-opts maxrate=1250000;bufsize=1250000 "
        "--mode 1640:1232:10:P -o -"
    )
    assert psutil.Process(pid).net_connections() == []
    assert f"camera: video from rpicam-vid (pid {pid}), 160 x 96" in caplog.messages
    assert warnings(caplog) == []
    assert bench.camera.relaunches == 0
    frame = bench.camera.newest_frame(timeout_s=WAIT_S)
    assert frame.bgr.shape == (96, 160, 3)
    first = bench.camera.open_tap(frame.arrival_s).get(0)
    assert first.is_key
    assert first.arrival_s <= frame.arrival_s


RATE = "maxrate=2500000;bufsize=2500000"


@pytest.mark.parametrize(
    ("help_text", "expected"),
    [
        ("", ["--flush", "-o", "-"]),
        ("  --low-latency [=arg(=1)] (=0)  Enable", ["--flush", "--low-latency", "-o", "-"]),
        ("  --libav-format arg  Sets", ["--flush", "--libav-format", "h264", "-o", "-"]),
        ("--libav-format-x arg --ultra--low-latency", ["--flush", "-o", "-"]),
        (
            "--low-latency\n--libav-video-codec-opts arg",
            ["--flush", "--low-latency", "--libav-video-codec-opts", RATE, "-o", "-"],
        ),
        (
            "--libav-video-codec-opts arg",
            [
                *("--flush", "--libav-video-codec-opts", f"tune=zerolatency;bf=0;thread_type=slice;{RATE}"),
                *("-o", "-"),
            ],
        ),
    ],
)
def test_options_that_not_every_version_knows_are_used_where_help_lists_them(help_text, expected) -> None:
    command = command_line("/usr/bin/rpicam-vid", Settings(640, 480, 10, 2_000_000), Offer(help_text))
    assert command[command.index("--flush") :] == expected


def test_the_owners_options_come_last_so_that_a_missing_value_takes_none_of_ours() -> None:
    options = ("--rotation", "180", "--ev", "-0.5", "--hflip", "--roi=0,0,1,1")
    settings = Settings(640, 480, 10, 2_000_000, options)
    help_text = "--rotation arg\n--ev arg\n--hflip\n--roi arg"
    assert command_line("rpicam-vid", settings, Offer(help_text))[-8:] == ["-o", "-", *options]
    assert command_line("rpicam-vid", settings, Offer())[-6:] == list(options), "no help, no complaint"


def test_options_that_the_program_does_not_have_are_named_and_not_tried(bench, caplog) -> None:
    bench.program(FOREVER)
    bench.use(options=("--rotation", "180", "--hfilp", "--tuning-file=x.json"))
    bench.until(lambda: bench.camera.state == "waiting", "not noticed")
    (warning,) = warnings(caplog)
    assert "rpicam-vid has no option --hfilp, --tuning-file: change CAMERA_OPTIONS" in warning
    assert bench.launches == []


def test_the_daemons_own_options_are_all_refused_by_name() -> None:
    sensor = parse_sensors("0 : x [3280x2464] (/base)\n 'SRGGB8' : 640x480 [206.65 fps - (0, 0)/1280x960 crop]")[0]
    everything = Offer("--low-latency --libav-format --libav-video-codec-opts --mode", mode_for(sensor, 640, 480, 10))
    own = option_names(command_line("rpicam-vid", Settings(640, 480, 10, 2_000_000), everything))
    assert len(own) > 12
    for name in [*own, *(name[:-1] for name in own if len(name) > 4), "--listen=1", "-oout.h264", "--config"]:
        (problem,) = find_problems(vars(script) | {"CAMERA_OPTIONS": ("--hflip", name, "1")})
        assert problem.startswith(f"CAMERA_OPTIONS must not have {option_names([name])[0]}: ")


@pytest.mark.parametrize("failure", ["exit 127", "exit 255", "a hang", "not there"])
def test_help_that_fails_once_is_asked_for_again_after_the_failed_start(bench, monkeypatch, failure) -> None:
    """Without --libav-format a Pi 5 sends nothing: one failed answer must not count for the life of the process."""
    monkeypatch.setattr(machine, "ANSWER_TIMEOUT_S", 2.0)
    program = bench.program("if '--libav-format' not in sys.argv: sys.exit(255)\n" + FOREVER)
    asked = bench.folder / "asked"
    how = {"exit 127": "exit 127", "exit 255": "echo '--libav-format'; exit 255", "a hang": "exec sleep 9"}
    wrapper = f"#!/bin/sh\nif [ $# = 1 ] && [ ! -e {asked} ]; then echo >> {asked}; {how.get(failure)}; fi\n"
    program.rename(bench.folder / "real")
    if failure != "not there":
        program.write_text(wrapper + f'exec {bench.folder}/real "$@"\n')
        program.chmod(0o755)
    bench.use()
    if failure == "not there":
        bench.until(lambda: bench.camera.state == "waiting", "not noticed")
        (bench.folder / "real").rename(program)
    bench.until_pictures()
    tried = ["--libav-format" in arguments for _, arguments in bench.launches]
    assert tried == ([True] if failure == "not there" else [False, True])


def test_help_is_not_asked_for_again_while_the_camera_works(bench) -> None:
    program = bench.program("play(15); sys.exit(1)")
    program.rename(bench.folder / "real")
    program.write_text(f'#!/bin/sh\n[ $# = 1 ] && echo "$1" >> {bench.folder}/asked\nexec {bench.folder}/real "$@"\n')
    program.chmod(0o755)
    bench.use()
    bench.until(lambda: len(bench.launches) >= 4, "launches")
    asked = (bench.folder / "asked").read_text().split()
    assert asked.count("--help") + asked.count("--list-cameras") < 2 * len(bench.launches)


def test_the_older_name_is_found_and_the_newer_one_preferred(bench) -> None:
    with pytest.raises(CameraError, match=r"neither rpicam-vid nor libcamera-vid .*rpicam-apps") as error:
        find_program()
    assert error.value.fault.cause == "not installed"
    old = bench.program(FOREVER, name="libcamera-vid")
    assert find_program() == str(old)
    new = bench.program(FOREVER)
    assert find_program() == str(new)


# ---- Faults: the reason in the log, once a cause, and video again afterwards


CAUSES = {
    "no cameras": ("say('ERROR: *** no cameras available ***'); sys.exit(255)", "no camera found by rpicam-vid"),
    "busy": (
        "say('ERROR: *** failed to acquire camera /base/soc/i2c0mux/i2c@1/imx708@1a ***'); sys.exit(255)",
        "held by another program",
    ),
    "option": ("say(\"ERROR: *** unrecognised option '--flush' ***\"); sys.exit(255)", "refuses an option"),
    "permission": ("say('ERROR: Could not open /dev/media0: Permission denied'); sys.exit(255)", "group video"),
    "code": ("say('first line'); say('out of memory'); sys.exit(3)", "died with code 3 (out of memory)"),
    "signal": ("os.kill(os.getpid(), signal.SIGSEGV)", "died with signal SIGSEGV (no message)"),
    "end": ("sys.exit(0)", "ended by itself"),
    "frame reports": (
        "say('it broke'); [say('#%d (10.00 fps) exp 33.0 ag 1.0 dg 1.0' % n) for n in range(99)]; sys.exit(1)",
        "died with code 1 (it broke)",
    ),
    "chatter of libav": (
        "say('it broke'); say('[libx264 @ 0x7f9c2c0a40] kb/s:1973.21'); say('    Stream #0:0: Video: h264');"
        "say('      Side data:'); say('        cpb: bitrate max/min/avg: 0/0/2000000'); sys.exit(1)",
        "died with code 1 (it broke)",
    ),
    "escape sequences": ("say('\\x1b]0;title\\x07 red'); sys.exit(1)", r"code 1 (\x1b]0;title\x07 red)"),
    "dies in mid-video": ("play(15); say('boom'); sys.exit(4)", "died with code 4 (boom)"),
    "stalls": ("play(15); hang()", "stalled: no byte for"),
    "stalls and is deaf": ("deaf(); play(15); hang()", "stalled: no byte for"),
    "never a byte": ("deaf(); hang()", "stalled: no byte for"),
    "garbage": ("while True: os.write(1, b'\\xa5' * 1000); time.sleep(0.01)", "no picture in the data of"),
    "half a picture": ("play(15); os.write(1, next(pictures())[:300]); hang()", "stalled: no byte for"),
    "huge frames": ("play(name='huge', count=3); hang()", "its pictures have 16000x16000 pixels"),
    "thin frames": ("play(name='thin', count=3); hang()", "its pictures have 16000x2 pixels"),
    "B-frames": ("play(name='b-frames', count=9); hang()", "has B-frames: start it with --low-latency"),
    "closes its output": ("deaf(); play(15); os.close(1); hang()", "closed its output without ending"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_video_comes_back_and_the_log_names_the_cause_once(bench, caplog, monkeypatch, cause) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(camera_module, "FIRST_BYTE_S", STALL_S)
    monkeypatch.setattr(
        camera_process, "STOP_SIGNALS", ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.2), (signal.SIGKILL, 1.0))
    )
    body, expected = CAUSES[cause]
    bench.program(f"if LAUNCH > 2: play(10 ** 6); hang()\n{body}")
    bench.record("video", units(40, width=160, height=96) * 20)
    bench.record("b-frames", units(20, width=160, height=96, b_frames=2))
    bench.record("huge", hostile_video(16000, 16000))
    bench.record("thin", hostile_video(16000, 16, shown=(16000, 2)))
    bench.use()
    numbers = []
    bench.until(lambda: len(bench.launches) > 2, "not launched again")
    while len(numbers) < 5:
        bench.camera.check_and_launch_libcamera()
        if frame := bench.camera.newest_frame(timeout_s=0.2):
            numbers.append(frame.number)
    bench.until(lambda: "is back" in caplog.text, "not announced")
    (warning,) = warnings(caplog)
    assert expected in warning
    assert bench.camera.relaunches == 2
    assert re.search(r"camera is back: video from rpicam-vid \(pid \d+\), 160 x 96, relaunch [12]", caplog.text)
    assert bench.camera.fault is None
    assert not any(is_running(pid) for pid, _ in bench.launches[:2])
    assert zombies() == []
    bench.camera.stop()
    assert not is_running(bench.launches[2][0])
    assert zombies() == []


def test_a_missing_program_is_named_once_and_found_when_it_is_there(bench, caplog) -> None:
    bench.use()
    for _ in range(20):
        bench.camera.check_and_launch_libcamera()
        assert bench.camera.newest_frame(timeout_s=0.02) is None
    assert bench.camera.state == "waiting"
    assert "rpicam-apps" in bench.camera.fault.text
    (warning,) = warnings(caplog)
    assert "neither rpicam-vid nor libcamera-vid" in warning
    assert "rpicam-apps" in warning
    bench.program(FOREVER)
    bench.until_pictures()


def test_frame_numbers_go_on_over_relaunches_and_taps_of_the_old_stream_end(bench) -> None:
    bench.program("play(15); sys.exit(1)")
    bench.use()
    bench.until_pictures()
    tap = bench.camera.open_tap(0)
    seen = [-1]
    while len(bench.launches) < 4:
        bench.camera.check_and_launch_libcamera()
        if frame := bench.camera.newest_frame(timeout_s=0.2, after_number=seen[-1]):
            seen.append(frame.number)
    assert seen == sorted(set(seen))
    assert seen[-1] > 15
    while tap.get(1) is not None:
        pass
    assert tap.ended
    bench.camera.stop()
    assert bench.camera.open_tap(0).ended


def test_off_duty_the_program_is_stopped_and_its_return_is_no_relaunch(bench, caplog) -> None:
    bench.program("play()")
    bench.use()
    for number_of_launches in (1, 2):
        bench.until_pictures()
        assert len(bench.launches) == number_of_launches
        tap = bench.camera.open_tap(0)
        for _ in range(3):
            bench.camera.check_and_launch_libcamera(is_wanted=False)
            assert bench.camera.newest_frame(timeout_s=0.1) is None
        while tap.get(1) is not None:
            pass
        assert tap.ended
        assert not is_running(bench.launches[-1][0])
    assert len(bench.launches) == 2
    assert bench.camera.relaunches == 0
    bench.program("play(15); sys.exit(1)")
    bench.until(lambda: len(bench.launches) == 4, "not started again")
    assert bench.camera.relaunches == 1, "what a fault brought about counts"
    assert len(warnings(caplog)) == 1


def test_another_picture_size_after_a_relaunch_is_used(bench) -> None:
    bench.record("other", units(40, width=320, height=240))
    bench.program("if LAUNCH == 1: play(15); sys.exit(1)\nwhile True: play(name='other')")
    bench.use()
    sizes = set()
    while (320, 240) not in sizes:
        bench.camera.check_and_launch_libcamera()
        if frame := bench.camera.newest_frame(timeout_s=0.1):
            sizes.add(frame.luma().shape[::-1])
    assert sizes == {(160, 96), (320, 240)}
    bench.until(lambda: bench.camera.stream.size == (320, 240), "size of the stream")


def test_another_picture_size_in_mid_stream_ends_the_clip_and_the_camera_is_started_again(bench, caplog) -> None:
    caplog.set_level("INFO")
    bench.record("other", units(20, width=320, height=240))
    bench.program("play(15)\nif LAUNCH == 1: play(name='other'); hang()\nwhile True: play()")
    bench.use()
    bench.until_pictures()
    tap = bench.camera.open_tap(0)
    bench.until(lambda: "is back" in caplog.text, "not started again")
    assert len(bench.launches) == 2
    got = []
    while (unit := tap.get(1)) is not None:
        got.append((unit.width, unit.height))
    assert got == [(160, 96)] * 15
    (warning,) = warnings(caplog)
    assert "the picture size changed from 160x96 to 320x240" in warning
    assert not is_running(bench.launches[0][0])


def test_pauses_between_tries_grow_to_a_cap_and_start_afresh_after_a_healthy_spell(bench, monkeypatch, caplog) -> None:
    monkeypatch.setattr(camera_module, "BACK_OFF_S", (0.5, 1.0, 2.0, 4.0))
    now_s = [100.0]
    tries = []
    healthy = threading.Event()

    def refuse() -> str:
        tries.append(now_s[0])
        if healthy.is_set():
            return str(bench.program(FOREVER))
        raise CameraError("not installed", "not there")

    monkeypatch.setattr(camera_module, "find_program", refuse)
    bench.use(clock=lambda: now_s[0])
    for _ in range(300):
        bench.camera.check_and_launch_libcamera()
        now_s[0] += 0.125
    assert [later - earlier for earlier, later in itertools.pairwise(tries)][:5] == [0.5, 1.0, 2.0, 4.0, 4.0]
    healthy.set()
    now_s[0] += 4
    bench.camera.check_and_launch_libcamera()
    for _ in range(30):  # half a second on this clock, far more than a picture on the real one
        now_s[0] += camera_module.HEALTHY_S / 20
        assert bench.camera.newest_frame(timeout_s=WAIT_S) is not None
        bench.camera.check_and_launch_libcamera()
    healthy.clear()
    bench.camera.stream.close()
    tries.clear()
    before_s = now_s[0]
    for _ in range(20):
        bench.camera.check_and_launch_libcamera()
        now_s[0] += 0.125
    assert [at_s - before_s for at_s in tries][:2] == [0.0, 0.5], "the pauses are short again"
    assert len([warning for warning in warnings(caplog) if "not there" in warning]) == 2, "said again"


def test_a_camera_that_comes_and_goes_does_not_fill_the_log(bench, caplog) -> None:
    caplog.set_level("INFO")
    bench.program("play(12, pause_s=0.005); say('flap %d' % LAUNCH); sys.exit(1)")
    bench.use()
    bench.until(lambda: len(bench.launches) >= 8, "launches")
    assert len(warnings(caplog)) == 1
    assert len(caplog.records) <= 3, caplog.messages


def test_streams_without_use_are_faults_and_healthy_ones_are_not(bench) -> None:
    class FakeStream:
        received_bytes = 100
        started_s = last_byte_s = last_unit_s = last_key_s = 100.0
        failing_since_s: float | None = None

    def cause_at(now_s: float, **state: object) -> str | None:
        stream = FakeStream()
        vars(stream).update(state)
        fault = fault_of_stream(stream, now_s, 2.0)
        return fault and fault.cause

    assert cause_at(101.9) is None
    assert cause_at(102.1) == "stalled"
    assert cause_at(102.1, received_bytes=0) is None, "a camera may take its time to the first byte"
    assert cause_at(103.1, received_bytes=0) == "stalled"
    flowing = {"last_byte_s": 199.9, "last_unit_s": 199.9, "last_key_s": 199.0}
    assert cause_at(200.0, **flowing) is None
    assert cause_at(200.0, **{**flowing, "last_unit_s": 190.0}) == "garbage"
    assert cause_at(200.0, **{**flowing, "last_key_s": 130.0}) == "no key frame"
    assert cause_at(200.0, **flowing, failing_since_s=195.0) is None
    assert cause_at(200.0, **flowing, failing_since_s=180.0) == "garbage"


def test_a_refused_codec_is_asked_for_by_its_other_name(bench) -> None:
    bench.program(
        """
        if "libav" not in sys.argv:
            say("ERROR: *** libav: unable to find an appropriate output format ***"); sys.exit(255)
        while True: play()
        """
    )
    bench.use()
    bench.until_pictures()
    assert [("--codec libav" in arguments) for _, arguments in bench.launches] == [False, True]


NO_DRIVER = """\
ERROR: *** rpicam-apps currently only supports the Raspberry Pi platforms.
Contributions for other platforms are welcome at https://github.com/raspberrypi/rpicam-apps. ***"""
DIAGNOSES = {
    "no permission": (
        "[0:1] [7] ERROR MediaDevice: Failed to open media device at /dev/media0: Permission denied\n"
        "ERROR: *** no cameras available ***",
        "permission",
        r"group video\? \(\[0:1\] .* Permission denied\)",
    ),
    "no cameras": ("ERROR: *** no cameras available ***", "no camera", "ribbon cable"),
    "rpicam-apps-lite": (
        "ERROR: *** Unable to find an appropriate H.264 codec ***",
        "encoder",
        "no H.264 encoder: sudo apt install rpicam-apps",
    ),
    "booted without a camera": (NO_DRIVER, "no driver", "connect it with the Pi off .*only supports the Raspberry Pi"),
    "a library missing": (
        "rpicam-vid: error while loading shared libraries: libcamera.so.0.5: cannot open shared object file",
        "install",
        "lacks a library: sudo apt install --reinstall rpicam-apps",
    ),
    "the owner's value": (
        "ERROR: *** the argument ('up') for option '--rotation' is invalid ***",
        "option",
        "change CAMERA_OPTIONS",
    ),
    "any other": ("ERROR: *** no luck ***\nsomething later", "died code 255", r"code 255 \(ERROR: \*\*\* no luck"),
}


@pytest.mark.parametrize("case", DIAGNOSES)
def test_the_reason_is_read_from_what_the_program_said(case) -> None:
    said, cause, text = DIAGNOSES[case]
    fault = fault_of_exit("rpicam-vid", 255, said.splitlines())
    assert fault.cause == cause
    assert re.search(text, fault.text)


def test_exit_codes_and_signals_are_named() -> None:
    assert fault_of_exit("x", -9, []).text == "x died with signal SIGKILL (no message)"
    assert fault_of_exit("x", -99, []).text == "x died with signal 99 (no message)"
    assert fault_of_exit("x", 255, ["a", "b"]).cause == fault_of_exit("x", 255, ["c"]).cause == "died code 255"


# ---- Stopping


@pytest.mark.parametrize("manner", ["obedient", "deaf", "gone", "wrapper"])
def test_stop_ends_the_camera_within_three_seconds_whatever_it_does(bench, manner) -> None:
    body = {
        "obedient": FOREVER,
        "deaf": f"deaf()\n{FOREVER}",
        "gone": "play(15); sys.exit(0)",
        "wrapper": "deaf()\nif os.fork(): os.wait()\nplay(15); hang()",
    }[manner]
    bench.program(body)
    bench.use()
    bench.until_pictures()
    group = bench.launches[0][0]
    members = [p.pid for p in psutil.process_iter() if _group_of(p.pid) == group]
    if manner == "gone":
        time.sleep(0.6)
    started_s = time.monotonic()
    bench.camera.stop()
    assert time.monotonic() - started_s < 3
    bench.until(lambda: not any(is_running(pid) for pid in members), "left behind")
    assert len(members) == {"wrapper": 2, "gone": len(members)}.get(manner, 1)
    assert zombies() == []
    bench.camera.stop()
    bench.camera.check_and_launch_libcamera()
    assert bench.camera.state == "stopped"
    assert len(bench.launches) == 1


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def test_a_camera_whose_frames_cannot_be_used_is_replaced_and_said_once(bench, caplog) -> None:
    bench.program(FOREVER)
    bench.use()
    for launches in (1, 2, 3):
        bench.until_pictures()
        assert len(bench.launches) == launches
        bench.camera.reject(RuntimeError("no room for a picture"))
        assert bench.camera.stream is None
        assert not is_running(bench.launches[-1][0])
        bench.camera.reject(RuntimeError("again, without a stream"))
    (warning,) = warnings(caplog)
    assert "cannot be used (RuntimeError: no room for a picture)" in warning


def test_a_camera_whose_frames_take_too_long_to_decode_is_replaced(bench, caplog, monkeypatch) -> None:
    monkeypatch.setattr(camera_decoder, "MAX_DECODE_S", 0.2)
    bench.record("empty", hostile_video(4096, 2304, 300))
    bench.program("if LAUNCH == 1: play(count=300, name='empty', pause_s=0); hang()\n" + FOREVER)
    bench.use()
    bench.until(lambda: bench.camera.stream and bench.camera.stream.received_bytes > 3000, "nothing read")
    bench.until(lambda: len(bench.launches) == 2, "not replaced")
    bench.until_pictures()
    assert "cannot be used (UnusableStreamError: decoding" in warnings(caplog)[0]


def test_waiting_for_a_picture_ends_when_asked_to_stop(bench) -> None:
    bench.program("hang()")
    bench.use()
    stop = threading.Event()
    for _ in ("without a stream", "with a silent one"):
        stop.clear()
        threading.Timer(0.1, stop.set).start()
        started_s = time.monotonic()
        bench.camera.newest_frame(timeout_s=WAIT_S, stop=stop)
        assert time.monotonic() - started_s < WAIT_S / 2
        bench.camera.check_and_launch_libcamera()


def test_twenty_relaunches_leave_no_thread_no_descriptor_and_no_process(bench) -> None:
    bench.program("play(12, pause_s=0.001); say('bye'); sys.exit(1)")
    bench.use()

    def held() -> tuple[int, int, int]:
        process = psutil.Process()
        return process.num_fds(), threading.active_count(), len(process.children())

    before = held()
    bench.until(lambda: len(bench.launches) >= 21, "launches")
    bench.camera.stop()
    assert held() == before


DAEMON = """
import sys, time
sys.path.insert(0, {root!r})
from guardianberry.camera.supervisor import Camera
camera = Camera(width_px=160, height_px=96, frame_rate_fps=10, bitrate_bps=1000000,
                stream_url="tcp://127.0.0.1:8888", pre_roll_s=1, stall_s=60, wait_for_other_users=False)
camera.check_and_launch_libcamera()
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("camera_is", ["streaming", "silent"])
def test_no_camera_is_orphaned_by_a_kill_of_the_daemon(bench, camera_is) -> None:
    bench.program("deaf(); hang()" if camera_is == "silent" else FOREVER)
    root = str(Path(camera_module.__file__).resolve().parent.parent)
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON.format(root=root)])
    try:
        give_up_s = time.monotonic() + WAIT_S
        while not bench.launches:
            assert time.monotonic() < give_up_s, "no launch"
            time.sleep(0.02)
    finally:
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    pid = bench.launches[0][0]
    give_up_s = time.monotonic() + WAIT_S
    while is_running(pid):
        assert time.monotonic() < give_up_s, "orphaned"
        time.sleep(0.02)


# ---- Cameras of other people


LISTENING = """
    client = accept()
    while True: play(to=client.fileno())
"""


def test_a_stream_started_by_hand_is_read_and_left_and_then_a_camera_is_started(bench, caplog) -> None:
    caplog.set_level("INFO")
    bench.program(LISTENING)
    port = free_port()
    by_hand = bench.by_hand("-t", "0", "--listen", "-o", f"tcp://0.0.0.0:{port}")
    bench.use(wait_for_other_users=True, stream_url=f"tcp://127.0.0.1:{port}")
    bench.until_pictures()
    bench.until(lambda: bench.camera.state == "streaming", "not announced")
    assert f"video from rpicam-vid (pid {by_hand.pid}) on tcp://127.0.0.1:{port}" in caplog.text
    assert len(bench.launches) == 1, "a camera was started beside it"
    bench.program(FOREVER)
    by_hand.kill()
    by_hand.wait()
    bench.until(lambda: len(bench.launches) == 2, "no camera started")
    bench.until_pictures()
    assert any(f"(pid {by_hand.pid})" in warning for warning in warnings(caplog))


def test_another_camera_program_is_named_with_its_pid_once_and_waited_for(bench, caplog) -> None:
    bench.program(FOREVER.replace("play()", "play(to=os.open('/dev/null', 1))"), name="libcamera-vid")
    bench.program(FOREVER)
    other = bench.by_hand("-t", "0", "-o", "video.h264", name="libcamera-vid")
    bench.use(wait_for_other_users=True)
    for _ in range(10):
        bench.camera.check_and_launch_libcamera()
        assert bench.camera.newest_frame(timeout_s=0.05) is None
    (warning,) = warnings(caplog)
    assert f"libcamera-vid (pid {other.pid})" in warning
    other.kill()  # a zombie until it is waited for: it does not count
    bench.until_pictures()
    other.wait()


def test_a_stream_on_another_port_or_not_to_be_reached_is_named_and_waited_for(bench, caplog) -> None:
    bench.program("hang()")
    other = bench.by_hand("-l", "--output", f"tcp://127.0.0.1:{free_port()}")
    bench.use(wait_for_other_users=True, stream_url=f"tcp://127.0.0.1:{free_port()}")
    bench.until(lambda: bench.camera.state == "waiting", "not noticed")
    assert f"used by rpicam-vid (pid {other.pid})" in bench.camera.fault.text
    other.kill()
    other.wait()
    port = free_port()
    other = bench.by_hand("--listen", f"--output=tcp://127.0.0.1:{port}")
    bench.use(wait_for_other_users=True, stream_url=f"tcp://127.0.0.1:{port}")
    bench.until(lambda: bench.camera.state == "waiting", "not noticed")
    assert f"rpicam-vid (pid {other.pid}) should stream to tcp://127.0.0.1:{port}" in bench.camera.fault.text


def test_a_hand_started_stream_with_b_frames_is_refused_and_a_camera_without_is_started(bench, caplog) -> None:
    bench.record("b-frames", units(40, width=160, height=96, b_frames=2))
    bench.program(
        """
        if "--listen" in sys.argv:
            client = accept()
            while True: play(to=client.fileno(), name="b-frames")
        while True: play()
        """
    )
    port = free_port()
    by_hand = bench.by_hand("--listen", "-o", f"tcp://127.0.0.1:{port}")
    bench.until_somebody_listens(port)
    bench.use(wait_for_other_users=True, stream_url=f"tcp://127.0.0.1:{port}")
    bench.until(lambda: len(bench.launches) == 2, "no camera started")
    bench.until_pictures()
    assert by_hand.wait(WAIT_S) != 0, "its reader has left"
    assert any("has B-frames: start it with --low-latency" in warning for warning in warnings(caplog))


ANOTHER_USER = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can start processes of another user")


@as_root
def test_a_program_of_another_user_that_has_the_cameras_name_is_not_waited_for(bench, caplog) -> None:
    bench.program(f"become({ANOTHER_USER}); hang()", name="libcamera-vid")
    bench.program(FOREVER)
    others = [bench.by_hand("-t", "0", name="libcamera-vid") for _ in range(3)]
    bench.until_gone_to_another_user(others)
    bench.use(wait_for_other_users=True)
    bench.until_pictures()
    assert warnings(caplog) == []


@as_root
@pytest.mark.parametrize("listener", ["127.0.0.1", "0.0.0.0", "::", "that accepts nobody"])
def test_a_stream_of_another_user_is_not_read_and_the_log_names_him(bench, caplog, listener) -> None:
    port = free_port()
    accept = {"::": f'socket.create_server(("::", {port}), family=socket.AF_INET6, dualstack_ipv6=True).accept()[0]'}
    accept["that accepts nobody"] = f'socket.create_server(("127.0.0.1", {port})); hang()'
    serve = accept.get(listener, f'socket.create_server(("{listener}", {port})).accept()[0]')
    send = "while True: [client.sendall(picture) for picture in film]"
    bench.program(f"film = [*pictures()]; become({ANOTHER_USER}); client = {serve}\n{send}", name="film")
    bench.program("hang()")
    film = bench.by_hand(name="film")
    bench.until_gone_to_another_user([film])
    bench.until_somebody_listens(port)
    bench.by_hand("--listen", "-o", f"tcp://127.0.0.1:{port}")
    bench.use(wait_for_other_users=True, stream_url=f"tcp://127.0.0.1:{port}")
    bench.until(lambda: bench.camera.state == "waiting", "not noticed")
    for _ in range(5):
        bench.camera.check_and_launch_libcamera()
        assert bench.camera.stream is None
    because = "nobody has accepted" if "nobody" in listener else f"it belongs to user id {ANOTHER_USER}"
    assert because in warnings(caplog)[0]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_stream_of_our_own_user_is_known_by_the_kernels_table(address) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, dualstack_ipv6=":" in address) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "::1") if ":" in address else ("127.0.0.1",):
            with socket.create_connection((host, port), WAIT_S) as connection:
                assert uid_of_other_end(connection, 0.05) is None, "accepted by nobody yet"
                with server.accept()[0]:
                    assert uid_of_other_end(connection, 0) == os.getuid()


def test_camera_programs_are_told_from_programs_that_only_mention_one(bench) -> None:
    script = bench.program("hang()")
    copy = bench.folder / "rpicam-vid-notes"
    copy.write_text(script.read_text())
    copy.chmod(0o755)
    direct = bench.by_hand("--listen", "-o", "tcp://127.0.0.1:7777")
    interpreted = subprocess.Popen([sys.executable, "-IS", script, "-o", "x"])
    notes = bench.by_hand(name=copy.name)
    mentions = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "rpicam-vid"])
    shell = subprocess.Popen(["/bin/sh", "-c", "sleep 60 # rpicam-vid", "rpicam-vid"])
    bench.others += [interpreted, mentions, shell]
    bench.use()
    bench.until(lambda: len(bench.launches) >= 3, "start")
    found = {camera.pid: camera for camera in running_cameras()}
    assert {direct.pid, interpreted.pid} <= set(found)
    assert not {notes.pid, mentions.pid, shell.pid} & set(found)
    assert found[direct.pid].listens_on_port == 7777
    assert found[interpreted.pid].listens_on_port is None


def test_a_process_that_cannot_be_started_is_a_fault_and_leaks_nothing(bench, monkeypatch) -> None:
    monkeypatch.setattr(camera_process.shutil, "which", lambda name: None)
    before = psutil.Process().num_fds()
    with pytest.raises(CameraError, match="cannot be started"):
        CameraProcess([str(bench.folder / "missing")])
    assert psutil.Process().num_fds() == before
