"""The claims of SECURITY.md, held against the running process.

One daemon is watched through a whole life: start, conversion, events, uploads, stop. It begins among hostile files,
under a careless umask and with everything logged. What it did is then compared with what SECURITY.md says.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from guardianberry.machine import get_rpi_serial_number
from tests.daemon import ROOT, Daemon
from tests.faulty_proxy import Answer, FaultyProxy
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server, StoredObject, environment
from tests.test_weights import Payload, hostile_zip
from tests.upload_rig import jpeg, mp4
from tests.watcher import Watcher

IMAGES, VIDEOS = "guardianberry.images", "guardianberry.videos"
QUICK = {"MAX_RECORDING_DURATION_S": 2, "MIN_GAP_BETWEEN_VIDEO_START_S": 2, "PRE_ROLL_S": 1, "CLOCK_WAIT_S": 0}
# A network that has learned nothing sees people everywhere, if it is believed at all.
SEES_PEOPLE = {"CONF_THRES": 0.001, "DETECTIONS_TO_START": 1, "DETECTOR_INPUT_WIDTH_PX": 128, "MAX_DET": 5}
# In a process namespace of its own, where that is allowed: a camera program of somebody else on this machine would make
# the daemon wait.
ALONE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
CARELESS = ("sh", "-c", 'umask 000; exec "$@"', "sh")
STRACE = shutil.which("strace")
# Which files are looked for, who starts whom, and all that can open a way in or out.
TRACED = "file,process,socket,bind,listen,accept,accept4,connect,sendto,sendmsg,sendmmsg"

GOOD_IMAGE, GOOD_VIDEO = "1700000000-81-640-480.jpg", "1700000000-12-2-88-43-640-480.mp4"
FORGED = "2026-01-01 00:00:00,000 INFO    forged"
HOSTILE_NAMES = [
    f"x\n{FORGED}",
    f"1700000001-81-640-480.jpg\n{FORGED}.jpg",
    "1700000002-81-640-480.jpg\n",
    "1700000003-81-640-480.jpg\r\nx-amz-meta-owner: evil",
    "1700000004-81-640-480;x-amz-acl=public-read.jpg",
    "..",  # with a suffix: see below
    "..%2f..%2fetc%2fpasswd.jpg",
    "-rf",
    "--help",
    "$(touch PWNED).jpg",
    "`touch PWNED`.mp4",
    "; touch PWNED; .jpg",
    "| touch PWNED",
    "*",
    "\x1b[2J\x1b]0;owned\x07.jpg",
    "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe",
    "\N{FULLWIDTH DIGIT ONE}700000005-81-640-480.jpg",
    "01700000006-81-640-480.jpg",
    "1700000007-81-640-480.JPG",
    "+1700000008-81-640-480.jpg",
    "1700000009-81-640-480-.jpg",
    "1" * 251 + ".jpg",
    "1700000010-" + "9" * 230 + "-640-480.jpg",
    os.fsdecode(b"\xff\xfe\x80.jpg"),
]

needs_strace = pytest.mark.skipif(STRACE is None, reason="needs the command strace, which sees every system call")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")


@dataclasses.dataclass
class Life:
    """What was seen of one daemon from start to stop."""

    folder: Path
    log: str
    trace: list[str]  # system calls, as strace writes them; empty without strace
    watcher: Watcher
    s3: S3Server
    images: list[StoredObject]
    videos: list[StoredObject]
    mine: dict[bytes, str]  # content to name, of the files that were put there beforehand
    outside: dict[Path, bytes]  # what links pointed at, and its content then


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket(IMAGES, VIDEOS)
        yield server


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the official form; small, untaught, and not converted yet."""
    pytest.importorskip("torch")
    from tests.networks import network, save_official

    models = tmp_path_factory.mktemp("models")
    save_official(network(nc=1), models / "tiny.pt")
    return models


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path, s3: S3Server) -> Life:
    folder = tmp_path_factory.mktemp("life")
    mine, outside = surround_with_hostility(folder)
    traced = folder / "trace"
    prefix = (STRACE, "-f", "-qq", "--seccomp-bpf", "-e", f"trace={TRACED}", "-o", str(traced)) if STRACE else ()
    daemon = Daemon(
        folder,
        tiny_models,
        env=s3.environment() | {"AWS_SESSION_TOKEN": "a-session-token", "STAND_IN_VIDEO": str(ROOT / "demo/scene.mp4")},
        arguments=("-v",),
        prefix=(*CARELESS, *alone(), *prefix),
        WEIGHTS="tiny.pt",
        **QUICK,
        **SEES_PEOPLE,
    )
    with daemon.start(), ended(daemon):
        assert daemon.process is not None
        folders = [folder / "images", folder / "videos", tiny_models / ".cache"]
        with Watcher(daemon.process.pid, folders) as watcher:
            daemon.wait_for_log(r"event \d+: ", timeout_s=180)
            daemon.wait_for_log(r"INFO +video \S+: uploaded", count=2, timeout_s=60)
            daemon.wait_for_log(r"INFO +image \S+: uploaded", count=2, timeout_s=60)
            stop(daemon)
    trace = traced.read_text(errors="replace").splitlines() if STRACE else []
    return Life(
        folder, daemon.log, trace, watcher, s3, s3.objects(IMAGES), s3.objects(VIDEOS), mine, outside
    )  # fmt: skip


def surround_with_hostility(folder: Path) -> tuple[dict[bytes, str], dict[Path, bytes]]:
    """Fill the queue of a daemon that does not run yet with two good files and with what a bad mind would put there."""
    mine: dict[bytes, str] = {}
    outside: dict[Path, bytes] = {}
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for place, good, content in (("images", GOOD_IMAGE, jpeg), ("videos", GOOD_VIDEO, mp4)):
        queue = folder / place
        queue.mkdir()
        queue.chmod(0o777)  # as an owner's careless hand may have left it
        for name in (good, *(f"...{place}" if name == ".." else name for name in HOSTILE_NAMES)):
            body = content()
            (queue / name).write_bytes(body)
            (queue / name).chmod(0o600)
            mine[body] = name
        for number, prefix in enumerate(("", ".open-", ".part-", ".held-0123abcd-1-")):
            target = elsewhere / f"{place}-{number}"
            outside[target] = content()
            target.write_bytes(outside[target])
            (queue / f"{prefix}{good.replace('1700000000', f'170000010{number}')}").symlink_to(target)
        (queue / good.replace("1700000000", "1700000200")).symlink_to("/proc/self/environ")
        (queue / good.replace("1700000000", "1700000201")).symlink_to(elsewhere)
        (queue / good.replace("1700000000", "1700000202")).mkdir(mode=0o700)
        (queue / f".part-{good}").mkdir(mode=0o700)
        os.mkfifo(queue / good.replace("1700000000", "1700000203"), 0o600)
    (folder / "videos" / f".open-\n{FORGED}").write_bytes(b"")
    (folder / "videos" / f".open-\n{FORGED}").chmod(0o600)
    return mine, outside


def alone() -> tuple[str, ...]:
    works = (
        shutil.which(ALONE[0]) and subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
    )
    return ALONE if works else ()


@contextlib.contextmanager
def ended(daemon: Daemon) -> Iterator[None]:
    """Whatever happens, nothing of the daemon is left: a program under strace outlives strace's death."""
    assert daemon.process is not None
    wrapper = psutil.Process(daemon.process.pid)
    try:
        yield
    finally:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [wrapper, *wrapper.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def stop(daemon: Daemon) -> None:
    """SIGTERM to the daemon itself, which may run under strace and others."""
    assert daemon.process is not None
    wrapper = psutil.Process(daemon.process.pid)
    process, *_ = [  # behind it, at times: a child of it that has not become another program yet
        process
        for process in (wrapper, *wrapper.children(recursive=True))
        if process.name().startswith("python") and str(daemon.script) in process.cmdline()
    ]
    process.terminate()
    assert daemon.process.wait(15) == 0


# No way in


def test_nothing_ever_listens(life: Life) -> None:
    assert life.watcher.looks > 20
    assert {"rpicam-vid", "guardianberry.convert"} <= life.watcher.programs, "the children were watched, too"
    assert life.watcher.listening == set()


@needs_strace
def test_nothing_ever_listens_says_the_kernel(life: Life) -> None:
    calls = [call for call in life.trace if re.search(r"\b(bind|listen|accept4?)\(", call)]
    assert [call for call in calls if not is_harmless(call)] == []
    assert any("connect(" in call for call in life.trace), "the trace sees nothing at all"


# No other user's files


@needs_strace
def test_nothing_is_looked_for_where_other_users_could_have_put_it(life: Life) -> None:
    """Settings or a library in /tmp, say: a pipe there would stop each start, if nothing worse."""
    public = (
        r'"(/(?:tmp|var/tmp|dev/shm|run/lock)/[^"]*)"(?!\.\.\.)'  # with dots: what was written, cut short by strace
    )
    looked_for = {path for call in life.trace for path in re.findall(public, call) if "O_EXCL" not in call}
    made = {path for call in life.trace for path in re.findall(public, call) if "O_EXCL" in call}  # under a chance name
    mine = (str(life.folder.parent), str(ROOT), sys.prefix, sys.base_prefix)
    parents = tuple(f"{parent}" for folder in mine for parent in Path(folder).parents)
    assert {path for path in looked_for - made if not path.startswith(mine) and path not in parents} == set()
    assert any(path.endswith("/videos") for path in looked_for), "the trace sees nothing at all"


# One way out


@needs_strace
def test_nobody_but_the_s3_endpoint_is_spoken_to(life: Life) -> None:
    addressed = [call for call in life.trace if re.search(r"sin6?_port=", call) and not is_harmless(call)]
    assert [call for call in addressed if not is_to(call, life.s3.port)] == []
    assert len(addressed) >= 4
    # What a look-up in /etc/passwd may ask first, on this machine: a cache, and systemd's users.
    assert {path for call in life.trace for path in re.findall(r'sun_path=@?"([^"]*)"', call)} <= {
        "/var/run/nscd/socket",
        "/run/systemd/userdb/io.systemd.DynamicUser",
    }


@needs_strace
def test_the_conversion_was_traced_and_asked_nobody(life: Life) -> None:
    """torch and OpenVINO were loaded in the trace, and neither has so much as opened an internet socket."""
    assert "guardianberry.convert" in life.watcher.programs
    assert "tiny.pt converted in" in life.log
    (child,) = {call.split()[0] for call in life.trace if "execve(" in call and "guardianberry.convert" in call}
    family = {child}
    for call in life.trace:  # children of the child, and its threads
        if (made := re.match(r"(\d+) .*(?:clone3?|v?fork)\(.*= (\d+)$", call)) and made[1] in family:
            family.add(made[2])
    assert [call for call in life.trace if call.split()[0] in family and "AF_INET" in call] == []


def is_harmless(call: str) -> bool:
    """Netlink is the kernel's own; and urllib3 finds out by a bind to ::1 whether this machine has IPv6."""
    return "bind(" in call and ("AF_NETLINK" in call or ("htons(0)" in call and '"::1"' in call))


def is_to(call: str, port: int) -> bool:
    return f"htons({port})" in call and 'inet_addr("127.0.0.1")' in call


# Files


def test_files_are_for_their_owner_alone_whatever_the_umask(life: Life) -> None:
    assert {"images", "videos", ".cache", GOOD_IMAGE} <= life.watcher.seen
    assert any(name.startswith(".open-") for name in life.watcher.seen), "a clip was seen while it was written"
    # The first look may come before the daemon has closed the folders that were open to all.
    late = {name for name in life.watcher.too_open if name not in ("images: drwxrwxrwx", "videos: drwxrwxrwx")}
    assert late == set()
    for name in ("images", "videos"):
        assert (life.folder / name).stat().st_mode & 0o777 == 0o700


def test_hostile_names_are_neither_uploaded_nor_deleted(life: Life) -> None:
    uploaded = {life.mine[stored.body] for stored in (*life.images, *life.videos) if stored.body in life.mine}
    assert uploaded == {GOOD_IMAGE, GOOD_VIDEO}, "and the good ones were not held up"
    left = {
        path.read_bytes() for name in ("images", "videos") for path in (life.folder / name).iterdir() if path.is_file()
    }
    missing = [name for body, name in life.mine.items() if body not in left and name not in uploaded]
    assert missing == []
    assert not list(life.folder.rglob("PWNED"))
    assert not Path("/PWNED").exists()  # where the daemon was started


def test_no_name_puts_anything_into_an_objects_metadata(life: Life) -> None:
    for stored in (*life.images, *life.videos):
        assert re.fullmatch(r"[0-9a-f-]{36}\.(jpg|mp4)", stored.key)
        assert set(stored.metadata) <= {
            *("rpi_serial_no", "recording_start_time", "confidence", "width", "height", "alert_latency_ms"),
            *("model", "frame_rate", "confidence_threshold", "duration", "duration_s"),
            *("max_people_found", "max_confidence", "inference_time_ms", "camera_name", "local_time", "event"),
        }
        words = ("rpi_serial_no", "camera_name", "model", "event", "local_time")
        digits = {name: text for name, text in stored.metadata.items() if name not in words}
        assert uuid.UUID(stored.metadata["event"])
        assert re.fullmatch(r"[0-9T:+-]{25}|", stored.metadata.get("local_time", ""))
        assert all(re.fullmatch(r"[0-9.]+", text) for text in digits.values()), digits


def test_links_are_not_followed(life: Life) -> None:
    bodies = {stored.body for stored in (*life.images, *life.videos)}
    for target, content in life.outside.items():
        assert target.read_bytes() == content, f"{target.name} was changed through a link"
        assert content not in bodies, f"{target.name} was uploaded through a link"
    assert not any(SECRET_KEY.encode() in body for body in bodies), "/proc/self/environ went up"


# The log


def test_no_file_name_can_forge_a_line_of_the_log(life: Life) -> None:
    lines = life.log.split("\n")
    assert [line for line in lines if line.startswith(FORGED)] == []
    assert [line for line in lines if line and not re.match(r"\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ |    \| ", line)] == []
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", life.log), "a name could steer the owner's terminal"


def test_the_log_holds_no_secret(life: Life) -> None:
    assert " DEBUG " in life.log
    assert secrets_in(life.log, [stored.key for stored in (*life.images, *life.videos)]) == []


def test_the_log_of_a_daemon_whose_uploads_fail_holds_no_secret(tmp_path: Path, tiny_models: Path) -> None:
    """S3's real answer to a wrong key repeats the key; to a wrong signature, what was signed."""
    put_event(tmp_path)
    said = f"<AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId><StringToSign>{SECRET_KEY}</StringToSign>"
    with FaultyProxy() as proxy:
        proxy.answers = [
            Answer(403, "SignatureDoesNotMatch", said),
            Answer(400, "ExpiredToken", said),
            Answer(500, "InternalError", said),
            Answer(0),
        ]
        proxy.answer = Answer(403, f"InvalidAccessKeyId{ACCESS_KEY}\n{FORGED}", said)
        log = log_of_failure(
            tmp_path, tiny_models, proxy.url, r"uploads of .* fail", AWS_SESSION_TOKEN="a-session-token"
        )
        keys = [match.decode() for head in proxy.heads for match in re.findall(rb"PUT /[^/]+/(\S+)", head)]
    assert keys
    assert secrets_in(log.replace(f"InvalidAccessKeyId{ACCESS_KEY}", ""), keys) == []
    assert not any(line.startswith(FORGED) for line in log.split("\n"))


def secrets_in(log: str, keys: list[str]) -> list[str]:
    secrets = [ACCESS_KEY, SECRET_KEY, "a-session-token", "Signature=", "AWS4-HMAC", get_rpi_serial_number(), *keys]
    return [secret for secret in secrets if secret != "unknown" and secret in log]


# The wire


def test_plain_http_leaves_the_machine_for_nobody(tmp_path: Path, tiny_models: Path) -> None:
    put_event(tmp_path)
    trace = tmp_path / "trace"
    prefix = (STRACE, "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto", "-o", str(trace)) if STRACE else ()
    log = log_of_failure(tmp_path, tiny_models, "http://192.0.2.1:9000", "plain http", prefix=prefix)
    assert "WARNING" in log
    assert len(list((tmp_path / "images").iterdir())) == 1
    if STRACE:
        assert "192.0.2.1" not in trace.read_text(errors="replace")


@needs_openssl
def test_a_certificate_that_nobody_vouches_for_gets_nothing(tmp_path: Path, tiny_models: Path) -> None:
    certificate, key = self_signed(tmp_path)
    with S3Server(certificate=(certificate, key)) as server:
        server.create_bucket(IMAGES, VIDEOS)
        put_event(tmp_path)
        log = log_of_failure(tmp_path, tiny_models, server.url, "certificate is not trusted")
        assert "uploaded" not in log
        assert server.keys(IMAGES) | server.keys(VIDEOS) == set()
        # The server was fine, and is used once its owner vouches for it.
        with Daemon(
            tmp_path,
            tiny_models,
            env=environment(server.url) | {"AWS_CA_BUNDLE": str(certificate)},
            WEIGHTS="tiny.pt",
            CLOCK_WAIT_S=0,
        ) as daemon:
            daemon.wait_until(lambda: len(server.keys(IMAGES)) == 1, "no upload to a server that is vouched for")


def put_event(folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "images" / GOOD_IMAGE).write_bytes(jpeg())


def log_of_failure(
    folder: Path, models: Path, url: str, pattern: str, *, prefix: tuple[str, ...] = (), **env: str
) -> str:
    """What a daemon without a camera logs until `pattern` stands there, and a little longer."""
    variables = environment(url) | env | {"STAND_IN_FAULT": "no-camera"}
    daemon = Daemon(folder, models, env=variables, arguments=("-v",), prefix=prefix, WEIGHTS="tiny.pt", CLOCK_WAIT_S=0)
    with daemon.start(), ended(daemon):
        daemon.wait_for_log(pattern, timeout_s=120)
        time.sleep(2.0)  # the second try comes after a second
        stop(daemon)
        return daemon.log


def self_signed(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "server.pem", folder / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return certificate, key


# Weights


def hostile_checkpoint(models: Path, victim: Path) -> str:
    (models / "evil.pt").write_bytes(hostile_zip(victim))
    return "evil.pt"


def hostile_pickle(models: Path, victim: Path) -> str:
    (models / "evil.pt").write_bytes(pickle.dumps({"model": Payload(victim)}, protocol=2))
    return "evil.pt"


def hostile_graph(models: Path, victim: Path) -> str:
    """Billions of channels, and a layer from a library of the attacker's."""
    text = f"""<?xml version="1.0"?><net name="evil" version="11"><layers>
    <layer id="0" name="x" type="Parameter" version="opset1"><data shape="1,480,640,99999999999" element_type="u8"/>
    <output><port id="0"><dim>1</dim><dim>480</dim><dim>640</dim><dim>99999999999</dim></port></output></layer>
    <layer id="1" name="y" type="Evil" version="{victim}.so"><input><port id="0"/></input></layer>
    </layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges></net>"""
    (models / "evil.xml").write_text(text)
    (models / "evil.bin").write_bytes(b"\0" * 1000)
    return "evil.xml"


@pytest.mark.parametrize("make", [hostile_checkpoint, hostile_pickle, hostile_graph])
def test_hostile_weights_end_the_daemon_with_a_clear_word_and_run_nothing(tmp_path: Path, make: Any) -> None:
    pytest.importorskip("torch")
    models, victim = tmp_path / "models", tmp_path / "executed"
    models.mkdir()
    weights = make(models, victim)
    daemon = Daemon(tmp_path / "home", models, env=environment("http://127.0.0.1:1"), WEIGHTS=weights).start()
    with daemon:
        assert daemon.process is not None
        assert daemon.process.wait(120) == 1, daemon.log
    (said,) = [line for line in daemon.log.splitlines() if " ERROR " in line]
    assert f"{weights} cannot be used: " in said
    assert "Traceback" not in daemon.log
    assert "camera" not in daemon.log, "the daemon went on"
    assert not victim.exists(), "code from the file was run"


# Children


def test_what_opens_foreign_files_has_no_credentials(life: Life) -> None:
    """The conversion child reads weights of unknown origin, the camera program is not ours: neither needs the key."""
    assert life.watcher.knowing == set()


# The document


def test_every_test_that_the_document_names_exists() -> None:
    document = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", document)
    assert len(named) > 15
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"SECURITY.md names {file}::{name}"
