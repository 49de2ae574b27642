"""`--check`: each line good and bad, on fake commands and folders, with the stand-in camera and a real S3 server."""

from __future__ import annotations

import functools
import grp
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import detect_and_upload as script
from guardianberry.camera.other_users import RunningCamera
from guardianberry.detection.detector import Detector
from guardianberry.detection.weights import BUNDLED, Graph, Setup, find_graph
from guardianberry.doctor.check import Site, check, check_heartbeat
from guardianberry.doctor.machine import User, check_folder, check_power, check_start_at_boot, check_user
from guardianberry.doctor.page import Finding
from guardianberry.doctor.s3 import check_s3
from guardianberry.machine import lock_folder
from tests.daemon import ROOT, STAND_IN_PATH, install
from tests.faulty_proxy import Answer, FaultyProxy
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server, environment

BUCKETS = {"images": script.IMAGES_BUCKET, "videos": script.VIDEOS_BUCKET}
NOT_ALLOWED = Answer(403, "AccessDenied")
NOWHERE = "http://127.0.0.1:1/"
BERRY = User(1000, "berry", "in session")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a small network in it, ready for use."""
    pytest.importorskip("torch")
    from guardianberry.detection import conversion_child
    from tests.networks import network

    models = tmp_path_factory.mktemp("models")
    conversion_child.export(network(nc=1), models / "tiny.xml")
    for name in ("tiny.xml", "tiny.bin"):
        shutil.copy(models / name, models / name.replace("tiny", Path(BUNDLED).stem))
    find_graph("tiny.xml", models)
    return models


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket(*BUCKETS.values())
        yield server


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    """S3 as a camera's key meets it: asked for anything but PutObject it says no."""
    with FaultyProxy(s3.port) as proxy:
        proxy.answers = [NOT_ALLOWED]
        yield proxy


@functools.cache
def compiled(graph: Graph) -> Detector:
    """Once for all tests."""
    sizes = {"frame_width_px": 640, "frame_height_px": 480, "input_width_px": 320}
    return Detector(graph, **sizes, conf_thres=0.5, iou_thres=0.45, max_det=100)


class Machine:
    """A Raspberry Pi where all is well: its commands are scripts, its root is a folder."""

    def __init__(self, folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.bin, self.home = folder / "root", folder / "bin", folder / "home"
        self.program = folder / "home" / "guardianberry"
        self.models, self.monkeypatch = models, monkeypatch
        for path in (self.root / "etc/cron.d", self.root / "proc/device-tree", self.bin, self.program):
            path.mkdir(parents=True)
        (self.root / "proc/device-tree/model").write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
        launcher = self.program / "launch.sh"
        launcher.write_text("")
        launcher.chmod(0o755)
        self.command("vcgencmd", "echo throttled=0x0")
        self.cron(f"PATH={ROOT / 'demo'}:/usr/bin:/bin\n@reboot {launcher}")
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.setenv(
            "PATH", ":".join(map(str, (self.bin, Path(sys.executable).parent, ROOT / "demo", "/usr/bin", "/bin")))
        )
        (self.program / "models").symlink_to(models)
        self.user = BERRY
        self.running: list[RunningCamera] = []
        self.is_synchronised = True
        self.wait_s = 15.0

    def command(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def cron(self, table: str) -> None:
        (self.bin / "crontab.txt").write_text(table + "\n")
        self.command("crontab", f'[ "$1" = -l ] && cat {self.bin}/crontab.txt')

    def use(self, url: str) -> None:
        """Credentials that cron will have, too."""
        lines = []
        for name, value in environment(url).items():
            if name not in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
                self.monkeypatch.setenv(name, value)
                lines.append(f"{name}={value}\n")
        (self.root / "etc/environment").write_text("".join(lines))
        (self.root / "etc/environment").chmod(0o600)

    def make_detector(self, weights: str) -> Detector:
        graph = find_graph(weights, self.models, setup=Setup(release_url=NOWHERE))
        return compiled(graph)

    def check(self, *, upload: bool = False, **constants: object) -> tuple[int, str]:
        out = io.StringIO()
        ours = {"WEIGHTS": "tiny.xml", "MIN_FREE_DISK_BYTES": 0, "HEARTBEAT_S": 300}
        constants = vars(script) | ours | constants
        site = Site(
            self.root,
            self.program / "env",
            lambda: self.user,
            lambda: self.running,
            lambda: self.is_synchronised,
            self.wait_s,
        )
        make_detector = functools.partial(self.make_detector, constants["WEIGHTS"])
        code = check(self.program, constants, script.make_camera, make_detector, upload=upload, site=site, out=out)
        return code, out.getvalue()

    def check_s3(self, *, upload: bool = False, buckets: dict[str, str] = BUCKETS) -> str:
        """The part of the page on S3, for which no camera needs to be started."""
        findings = check_s3("AES256", self.root, buckets if upload else {})
        return "".join(f"{finding}\n" for finding in findings)


@pytest.fixture
def machine(tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, graph, monkeypatch)


def levels(page: str) -> dict[str, str]:
    """Subject to the worst level on the page."""
    found: dict[str, str] = {}
    for level, subject in re.findall(r"^(ok|warn|FAIL) +(at boot|\S+)", page, re.MULTILINE):
        worst = ("ok", "warn", "FAIL").index
        found[subject] = max(level, found.get(subject, "ok"), key=worst)
    return found


def line(page: str, subject: str, level: str) -> str:
    """The line's text with its advice, unwrapped."""
    unwrapped = re.sub(r"\n {19} *", " ", page)
    matches = [text for text in unwrapped.splitlines() if re.match(rf"{level} +{re.escape(subject)} ", text)]
    assert len(matches) == 1, page
    return matches[0]


# All is well


def test_a_machine_where_all_is_well(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    code, page = machine.check()
    assert set(levels(page).values()) == {"ok"}, page
    assert code == 0
    assert "Raspberry Pi 4" in line(page, "machine", "ok")
    assert re.search(r"v1\.12\.0, with all options that the daemon uses", line(page, "program", "ok"))
    assert re.search(r"first frame after \d+\.\d s, 640 x 480", line(page, "video", "ok"))
    assert re.search(r"tiny\.xml, \d+ ms a frame", line(page, "model", "ok"))
    assert "GuardianBerry works here." in page
    assert len(page.splitlines()) < 40, "a page"


def test_it_leaves_nothing_behind_but_the_picture(machine: Machine, proxy: FaultyProxy, s3: S3Server) -> None:
    machine.use(proxy.url)
    before = sorted([*machine.program.rglob("*"), machine.program / "check.jpg"])
    objects = [s3.keys(bucket) for bucket in BUCKETS.values()]
    machine.check()
    assert sorted(machine.program.rglob("*")) == before
    assert [s3.keys(bucket) for bucket in BUCKETS.values()] == objects, "only --upload may write into a bucket"


def test_the_picture_shows_the_zones(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    machine.check()
    without = cv2.imread(str(machine.program / "check.jpg")).astype(int)
    _, page = machine.check(IGNORE_ZONES=(((0.1, 0.1), (0.5, 0.1), (0.5, 0.6)),))
    assert "check.jpg" in page
    picture = cv2.imread(str(machine.program / "check.jpg")).astype(int)
    height_px, width_px = picture.shape[:2]
    corner = np.s_[int(0.1 * height_px) - 3 : int(0.1 * height_px) + 3, int(0.3 * width_px)]
    assert abs(picture[corner] - without[corner]).max() > 40


def test_no_credential_is_ever_shown(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    machine.monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://user:pass-in-url@127.0.0.1:{proxy.port}")
    machine.monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session-token")
    _, page = machine.check(upload=True)
    for secret in (ACCESS_KEY, SECRET_KEY, "a-session-token", "pass-in-url"):
        assert secret not in page


def test_with_upload_a_text_file_goes_into_each_bucket(machine: Machine, proxy: FaultyProxy, s3: S3Server) -> None:
    machine.use(proxy.url)
    before = {bucket: s3.keys(bucket) for bucket in BUCKETS.values()}
    code, page = machine.check(upload=True)
    assert code == 0, page
    for subject, bucket in BUCKETS.items():
        (key,) = s3.keys(bucket) - before[bucket]
        assert re.fullmatch(r"[0-9a-f-]{36}\.txt", key)
        assert key in line(page, subject, "ok")
    assert "Nothing was uploaded" not in page


# Camera


def test_no_camera_program(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    machine.monkeypatch.setenv("PATH", f"{machine.bin}:/usr/bin:/bin")
    if shutil.which("rpicam-vid") or shutil.which("libcamera-vid"):
        pytest.skip("this machine has a camera program")
    code, page = machine.check()
    assert code == 1
    said = line(page, "program", "FAIL")
    assert "neither rpicam-vid nor libcamera-vid" in said
    assert "sudo apt install rpicam-apps" in said
    assert levels(page)["model"] == "ok"


def test_no_camera(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    machine.monkeypatch.setenv("STAND_IN_FAULT", "no-camera")
    code, page = machine.check()
    assert code == 1
    assert "ribbon cable" in line(page, "camera", "FAIL")


@pytest.mark.parametrize(
    ("sensor", "constants", "level", "text"),
    [
        ("imx219", {}, "ok", r"sensor mode 1640 x 1232, 100 % of the sensor's area$"),
        ("imx708", {}, "ok", r"2304 x 1296, 75 % of the sensor's area; FRAME_HEIGHT_PX = 360 would show all of it"),
        ("imx708", {"FRAME_HEIGHT_PX": 360}, "ok", r"2304 x 1296, 100 % of"),
        (
            "imx219",
            {"FRAME_RATE_FPS": 100, "BITRATE_BPS": 4_000_000},
            "warn",
            r"640 x 480, 15 % .*set FRAME_RATE_FPS lower",
        ),
        (
            "ov5647",
            {"FRAME_RATE_FPS": 90, "BITRATE_BPS": 4_000_000},
            "warn",
            r"no sensor mode has 90 frames/s -> .* 59 at most",
        ),
    ],
)
def test_the_share_of_the_scene_that_is_seen(
    machine: Machine, proxy: FaultyProxy, sensor: str, constants: dict, level: str, text: str
) -> None:
    machine.use(proxy.url)
    machine.monkeypatch.setenv("STAND_IN_SENSOR", sensor)
    for name, value in constants.items():
        machine.monkeypatch.setattr(script, name, value)
    code, page = machine.check()
    assert code == 0, page
    assert re.search(text, line(page, "view", level))


@pytest.mark.parametrize(
    ("fault", "subject", "text", "advice"),
    [
        ("no-permission", "camera", "Failed to open media device at /dev/media0", "sudo usermod -aG video"),
        ("no-encoder", "video", "has no H.264 encoder", "sudo apt install rpicam-apps"),
        ("no-library", "program", "--help: .*lacks a library", "sudo apt install --reinstall rpicam-apps"),
        ("no-driver", "program", "--help: .*connect it with the Pi off", ""),
        ("busy", "video", "held by another program", "End that program"),
    ],
)
def test_what_the_camera_program_refuses_is_told_with_what_helps(
    machine: Machine, proxy: FaultyProxy, fault: str, subject: str, text: str, advice: str
) -> None:
    machine.use(proxy.url)
    machine.wait_s = 3.0
    machine.monkeypatch.setenv("STAND_IN_FAULT", fault)
    code, page = machine.check()
    assert code == 1
    said = line(page, subject, "FAIL")
    assert re.search(text, said)
    assert advice in said
    assert not advice or "ribbon" not in said


def test_a_camera_program_that_hangs_is_told_as_one(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    machine.command("rpicam-vid", "exec sleep 60")
    code, page = machine.check()
    assert code == 1
    said = line(page, "program", "FAIL")
    assert "--help does not end within 3 s" in said
    assert f"{machine.bin}/rpicam-vid --help" in said
    assert "reinstall" not in said


def test_camera_options_that_the_program_does_not_have(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    code, page = machine.check(CAMERA_OPTIONS=("--rotation", "180", "--hfilp"))
    assert code == 1
    assert "has no option --hfilp, which CAMERA_OPTIONS has" in line(page, "program", "FAIL")


def test_nothing_that_the_camera_program_says_reaches_the_terminal_raw(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    machine.wait_s = 1.0
    escape = r"\033[2J\033]0;owned\007"
    machine.command(
        "rpicam-vid",
        f"""case "$*" in --list-cameras) printf '0 : imx{escape} [10x10] (/base/x)\\n';; --*) printf 'v1.2{escape}\\n';;
        *) printf 'ERROR: *** {escape} ***\\n' >&2; exit 255;; esac""",
    )
    _, page = machine.check()
    assert r"\x1b[2J\x1b]0;owned\x07" in page
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", page)


def test_a_camera_without_a_frame(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    machine.wait_s = 1.0
    machine.command(
        "rpicam-vid",
        'case "$*" in --list-cameras) echo "0 : imx708 [4608x2592] (/base/x)";; --*) echo v1.2.3;; *) echo "ERROR: ***'
        ' no luck ***" >&2; exit 255;; esac',
    )
    code, page = machine.check()
    assert code == 1
    assert "imx708 [4608x2592]" in line(page, "camera", "ok")
    assert re.search(r"no frame within 1 s: .*no luck", line(page, "video", "FAIL"))


def test_what_a_camera_program_prints_cannot_reach_the_terminal(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    machine.wait_s = 1.0
    machine.command(
        "rpicam-vid",
        r"""case "$*" in --list-cameras) printf '0 : imx708\033]0;title\007 (/base)\n';;
--*) printf 'v1.2.3\033[2J\n';; *) exit 1;; esac""",
    )
    _, page = machine.check()
    assert "\x1b" not in page
    assert r"v1.2.3\x1b[2J" in line(page, "program", "warn")
    assert r"imx708\x1b]0;title\x07" in line(page, "camera", "ok")


def test_off_duty_a_running_daemon_needs_no_camera(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    (machine.program / "disarmed").touch()
    lock = lock_folder(machine.program)
    try:
        code, page = machine.check()
    finally:
        os.close(lock)
    assert code == 0, page
    assert "off duty: the file disarmed, until " in line(page, "camera", "warn")


def test_the_camera_of_a_running_daemon_is_not_disturbed(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    log = machine.home / "camera.log"
    machine.command("rpicam-vid", f'echo "$@" >> {log}; echo v1.2.3')
    machine.running = [RunningCamera(4711, "rpicam-vid", None)]
    lock = lock_folder(machine.program)
    try:
        code, page = machine.check()
    finally:
        os.close(lock)
    assert code == 0, page
    assert levels(page)["daemon"] == "ok"
    assert "rpicam-vid (pid 4711) for the running daemon" in line(page, "camera", "ok")
    assert set(log.read_text().splitlines()) == {"--version", "--help"}, "neither touches the camera"


def test_a_running_daemon_without_a_camera(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    machine.wait_s = 0.5
    lock = lock_folder(machine.program)
    try:
        code, page = machine.check()
    finally:
        os.close(lock)
    assert code == 1
    assert "no camera" in line(page, "camera", "FAIL")


@pytest.mark.parametrize(("port", "level"), [(8888, "ok"), (9999, "warn"), (None, "warn")])
def test_a_camera_that_another_program_uses(machine: Machine, proxy: FaultyProxy, port: int | None, level: str) -> None:
    machine.use(proxy.url)
    machine.running = [RunningCamera(4711, "rpicam-vid", port)]
    code, page = machine.check()
    assert code == 0
    assert "pid 4711" in line(page, "camera", level)
    assert "not disturbed" in line(page, "camera", level)
    assert "video" not in levels(page)


def test_a_camera_program_that_cron_does_not_find(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    machine.cron(f"@reboot {machine.program}/launch.sh")
    code, page = machine.check()
    assert code == 0
    assert f"PATH={ROOT / 'demo'}:/usr/bin:/bin" in line(page, "program", "warn")


# Model


def test_weights_that_are_not_there(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    code, page = machine.check(WEIGHTS="mine.pt")
    assert code == 1
    assert "mine.pt is not in" in line(page, "model", "FAIL")


def test_it_warns_that_nobody_is_told_of_silence() -> None:
    assert check_heartbeat(300).level == "ok"
    off = check_heartbeat(script.HEARTBEAT_S)
    assert off.level == "warn"
    assert "HEARTBEAT_S = 300" in off.advice


def test_a_model_in_place_of_another_is_a_warning(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    code, page = machine.check(WEIGHTS="yolov5n.pt")
    assert code == 0
    assert BUNDLED in line(page, "model", "warn")
    assert "yolov5n.pt is missing" in line(page, "model", "warn")


def test_a_daemon_that_is_still_converting_is_left_alone(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    machine.running = [RunningCamera(4711, "rpicam-vid", None)]
    before = sorted((machine.models / ".cache").iterdir())
    lock = lock_folder(machine.program)
    try:
        _, page = machine.check(WEIGHTS="new.xml")
    finally:
        os.close(lock)
    assert "still preparing new.xml" in line(page, "model", "warn")
    assert sorted((machine.models / ".cache").iterdir()) == before


# Credentials and endpoint


def test_no_credentials(machine: Machine) -> None:
    page = machine.check_s3()
    assert "no AWS credentials" in line(page, "credentials", "FAIL")


def test_plain_http_is_refused(machine: Machine) -> None:
    machine.use("http://192.0.2.1:9000")
    page = machine.check_s3(upload=True)
    assert "plain http" in line(page, "endpoint", "FAIL")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(403, "InvalidAccessKeyId"), "does not know these AWS credentials"),
        (Answer(403, "SignatureDoesNotMatch"), "secret is wrong"),
        (Answer(403, "RequestTimeTooSkewed"), "clock is more than 15 minutes off"),
        (Answer(0), "connection"),
    ],
)
def test_a_key_that_s3_refuses(machine: Machine, proxy: FaultyProxy, answer: Answer, said: str) -> None:
    machine.use(proxy.url)
    proxy.answers = []
    proxy.answer = answer
    page = machine.check_s3()
    assert said in line(page, "endpoint", "FAIL")


def test_s3_that_cannot_be_reached(machine: Machine) -> None:
    machine.use("http://127.0.0.1:1")
    page = machine.check_s3()
    assert "cannot be reached" in line(page, "endpoint", "FAIL")


def test_a_key_that_may_do_more_than_it_should(machine: Machine, s3: S3Server) -> None:
    machine.use(s3.url)
    page = machine.check_s3()
    assert "may list all buckets" in line(page, "endpoint", "warn")


def test_a_bucket_that_refuses_the_test_object(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    page = machine.check_s3(upload=True, buckets={**BUCKETS, "videos": "not-there"})
    assert levels(page)["images"] == "ok"
    assert "bucket does not exist" in line(page, "videos", "FAIL")


def test_a_key_that_everyone_may_read(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    (machine.root / "etc/environment").chmod(0o644)
    page = machine.check_s3()
    assert "chmod 600 /etc/environment" in line(page, "credentials", "warn")


def test_a_credentials_file_that_everyone_may_read(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    aws = machine.home / ".aws"
    aws.mkdir()
    (aws / "credentials").write_text("[default]\n")
    (aws / "credentials").chmod(0o640)
    page = machine.check_s3()
    assert f"chmod 600 {aws}/credentials" in line(page, "credentials", "warn")


def test_a_key_of_this_shell_alone(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    system = machine.root / "etc/environment"
    system.write_text(re.sub(r"AWS_SECRET_ACCESS_KEY=.*\n", "", system.read_text()))
    page = machine.check_s3()
    assert "AWS_SECRET_ACCESS_KEY of this shell" in line(page, "credentials", "warn")


# The machine


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ("0x1", "under-voltage now"),
        ("0x50005", "under-voltage now, throttled now"),
        ("0x80000", "too hot since the boot"),
    ],
)
def test_a_weak_power_supply(machine: Machine, bits: str, said: str) -> None:
    machine.command("vcgencmd", f"echo throttled={bits}")
    (finding,) = check_power()
    assert finding.level == "warn"
    assert said in finding.text


def test_power_is_left_out_where_nobody_knows(machine: Machine) -> None:
    machine.command("vcgencmd", "echo VCHI initialization failed; exit 255")
    assert list(check_power()) == []


@pytest.mark.parametrize(
    ("video", "advice"),
    [("in session", ""), ("after login", "Log out and in"), ("not a member", "usermod -aG video berry")],
)
def test_a_user_in_and_outside_group_video(machine: Machine, video: str, advice: str) -> None:
    (finding,) = check_user(machine.program, BERRY._replace(video=video))
    assert finding.level == ("warn" if advice else "ok")
    assert advice in finding.advice


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("groups", "said"), [("44", "in session"), ("45", "not a member")])
def test_groups_are_those_of_the_session(groups: str, said: str) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs the command setpriv (package util-linux)")
    program = "from guardianberry.doctor.machine import current_user; print(current_user())"
    video = grp.getgrnam("video").gr_gid
    command = ["setpriv", "--reuid=65534", "--regid=65534", f"--groups={video if groups == '44' else 45}"]
    answer = subprocess.run([*command, sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert f"video='{said}'" in answer.stdout, answer.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_root_leaves_no_files_in_the_folder_of_another(machine: Machine) -> None:
    machine.user = User(0, "root", "not a member")
    os.chown(machine.program, 1000, 1000)
    before = sorted(machine.models.rglob("*"))
    code, page = machine.check(WEIGHTS=BUNDLED)
    assert code == 1
    assert "without sudo" in line(page, "user", "FAIL")
    assert sorted(machine.models.rglob("*")) == before


def test_wrong_constants_are_told_and_not_tried(machine: Machine) -> None:
    code, page = machine.check(FRAME_RATE_FPS=0, MIN_FREE_DISK_BYTES="a lot")
    assert code == 1
    assert "MIN_FREE_DISK_BYTES must be a number" in line(page, "settings", "FAIL")
    assert "model" not in levels(page)


def test_a_clock_that_nobody_has_set(machine: Machine, proxy: FaultyProxy) -> None:
    machine.use(proxy.url)
    machine.is_synchronised = False
    code, page = machine.check()
    assert code == 0
    assert "timedatectl" in line(page, "clock", "warn")


def test_a_folder_that_cannot_be_written_to(machine: Machine) -> None:
    (machine.program / "images").write_text("a file, not a folder")
    finding = check_folder(machine.program / "images", 0, BERRY)
    assert (finding.level, finding.subject) == ("FAIL", "images/")
    assert "sudo chown -R berry" in finding.advice


@pytest.mark.parametrize(("free", "level"), [(10**6, "FAIL"), (4 * 10**8, "warn"), (6 * 10**8, "warn"), (10**10, "ok")])
def test_a_full_disk(machine: Machine, free: int, level: str) -> None:
    (machine.program / "images").mkdir()
    finding = check_folder(machine.program / "images", 5 * 10**8, BERRY, free_bytes=lambda _: free)
    assert finding.level == level
    assert ("MIN_FREE_DISK_BYTES" in finding.advice) is (free == 4 * 10**8)


def test_damaged_clips_are_named(machine: Machine) -> None:
    (machine.program / "videos").mkdir()
    (machine.program / "videos" / ".damaged-1-2-3-4-5-6-7.mp4").touch()
    finding = check_folder(machine.program / "videos", 0, BERRY)
    assert finding.level == "warn"
    assert "could not be finished: 1, such as .damaged-1-2-3-4-5-6-7.mp4" in finding.text


def test_a_link_to_a_disk_that_is_not_mounted(machine: Machine) -> None:
    (machine.program / "images").symlink_to("/media/stick/images")
    finding = check_folder(machine.program / "images", 0, BERRY)
    assert finding.level == "FAIL"
    assert "/media/stick/images" in finding.text
    assert "Mount" in finding.advice


@pytest.mark.parametrize(
    ("table", "level"),
    [
        ("@reboot {launcher} >> log 2>&1", "ok"),
        ("@reboot  /bin/bash {launcher}", "ok"),
        ("@reboot {launcher}.old", "warn"),
        ("@reboot /home/other/launch.sh", "warn"),
        ("@daily {launcher}", "warn"),
        ("", "warn"),
    ],
)
def test_the_line_for_cron(machine: Machine, table: str, level: str) -> None:
    launcher = machine.program / "launch.sh"
    machine.cron(table.format(launcher=launcher))
    finding = check_start_at_boot(machine.program, machine.root)
    assert finding.level == level
    assert level == "ok" or finding.advice.endswith(f"\n@reboot {launcher}")


@pytest.mark.parametrize("home", ["$HOME", "${HOME}", "~"])
def test_the_line_for_cron_as_the_readme_has_it(machine: Machine, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("HOME", str(machine.program.parent))
    machine.cron(f"@reboot {home}/{machine.program.name}/launch.sh")
    assert check_start_at_boot(machine.program, machine.root).level == "ok"


@pytest.mark.parametrize("name", ["my übercam", "50% off", "it's"])
def test_commands_and_the_line_for_cron_are_quoted(machine: Machine, name: str) -> None:
    folder = machine.program.rename(machine.program.with_name(name))
    (folder / "launch.sh").write_text("echo started")
    machine.cron(f"@reboot {folder}/launch.sh".replace("'", ""))
    finding = check_start_at_boot(folder, machine.root)
    assert finding.level == "warn", "cron would start something else"
    *_, line_for_cron = finding.advice.splitlines()
    assert not re.search(r"(?<!\\)%", line_for_cron), "cron ends a command at a bare %"
    command = line_for_cron.removeprefix("@reboot ").replace(r"\%", "%")  # as cron gives it to sh
    assert subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout == "started\n"
    machine.cron(line_for_cron)
    assert check_start_at_boot(folder, machine.root).level == "ok"
    for wrong in (folder / "images", folder / "videos"):
        wrong.touch()
        *_, command = check_folder(wrong, 0, BERRY).advice.splitlines()
        assert shlex.split(command) == ["sudo", "chown", "-R", "berry", str(wrong)]


def test_a_line_that_is_commented_out_is_none(machine: Machine) -> None:
    machine.cron(f"# @reboot {machine.program}/launch.sh")
    assert check_start_at_boot(machine.program, machine.root).text == "nothing starts it after a power cut"


def test_other_ways_to_start_at_boot(machine: Machine) -> None:
    machine.cron("")
    launcher = machine.program / "launch.sh"
    (machine.root / "etc/cron.d/guardianberry").write_text(f"@reboot berry {launcher}\n")
    assert check_start_at_boot(machine.program, machine.root).level == "ok"
    (machine.root / "etc/cron.d/guardianberry").unlink()
    units = machine.root / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / "guardianberry.service").write_text(f"[Service]\nExecStart={launcher}\n")
    assert "guardianberry.service" in check_start_at_boot(machine.program, machine.root).text
    launcher.chmod(0o644)
    assert "chmod +x" in check_start_at_boot(machine.program, machine.root).advice


# The page


def test_the_script_shows_the_page_on_stdout_and_nothing_else(tmp_path: Path, graph: Path) -> None:
    script = install(tmp_path, WEIGHTS="tiny.xml", BITRATE_BPS="two million")
    (tmp_path / "models").symlink_to(graph)
    environment = {"PATH": STAND_IN_PATH, "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    command = [sys.executable, str(script), "--check"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 1
    assert answer.stderr == ""
    assert "BITRATE_BPS must be a whole number" in line(answer.stdout, "settings", "FAIL")
    assert "GuardianBerry would NOT work: 2 FAIL" in answer.stdout
    install(tmp_path, WEIGHTS="tiny.xml")
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert levels(answer.stdout)["settings"] == "ok"
    assert re.search(r"tiny\.xml, \d+ ms a frame", line(answer.stdout, "model", "ok"))
    assert answer.stderr == ""


def test_a_package_that_cannot_be_imported_is_a_line_and_no_traceback(tmp_path: Path) -> None:
    script = install(tmp_path)
    (tmp_path / "botocore.py").write_text("")  # found before the real one, and without what is in that
    answer = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert re.match(r"FAIL  packages     .*botocore", answer.stdout), answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr


def test_lines_are_wrapped_but_commands_stay_in_one_piece() -> None:
    command = "@reboot " + "/a/very/long/path " * 9
    shown = str(Finding("warn", "at boot", "word " * 40, "advice " * 30 + "\n" + command))
    *others, last = shown.splitlines()
    assert last.strip() == command.strip()
    assert all(len(text) <= 100 for text in others)
    assert sum("->" in text for text in others) == 1
    assert textwrap.dedent(shown).startswith("warn  at boot      word")


def test_a_page_that_nobody_reads_on_ends_quietly() -> None:
    """As in `--check | head -3`."""
    program = "import sys; from guardianberry.doctor.page import Page, ok; Page(sys.stdout).add([ok('camera', 'here')])"
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writing)
    assert (answer.returncode, answer.stderr) == (1, b"")
