"""WEIGHTS to graph: real files, real conversion children, a real HTTP server on this computer as the release."""

import hashlib
import http.server
import io
import logging
import os
import pickle
import pwd
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guardianberry.detection import conversion_child
from guardianberry.detection import openvino_model as graphs
from guardianberry.detection import weights as weights_module
from guardianberry.detection.conversion_record import RECORD_NAME
from guardianberry.detection.detector import Detector
from guardianberry.detection.preparation import Preparation
from guardianberry.detection.weights import (
    BUNDLED,
    OFFICIAL_SHA256,
    Graph,
    Setup,
    UnavailableError,
    WeightsError,
)
from tests.daemon import OFFICIAL_WEIGHTS, ROOT
from tests.test_other_users import ANOTHER_USER, needs_root, open_folder  # noqa: F401

NOWHERE = "http://127.0.0.1:9/"  # the discard port: refused at once
THRESHOLDS: dict[str, Any] = {"conf_thres": 0.255, "iou_thres": 0.45, "max_det": 1000}


def find_graph(weights: str, models: Path, *, stop: threading.Event | None = None, **setup: Any) -> Graph:
    return weights_module.find_graph(weights, models, stop=stop, setup=Setup(**setup))


class Payload:
    """Unpickling this runs a command."""

    def __init__(self, target: Path) -> None:
        self._command = f"touch {target}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (self._command,))


def hostile_zip(target: Path) -> bytes:
    """What torch.save would write around such a pickle."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Payload(target)}, protocol=2))
        archive.writestr("archive/version", "3\n")
    return data.getvalue()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with random weights, in the form of an official checkpoint."""
    pytest.importorskip("torch")
    from tests import networks

    path = tmp_path_factory.mktemp("checkpoint") / "small.pt"
    networks.save_official(networks.network(), path)
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of our own as training writes it: one class, half precision."""
    pytest.importorskip("torch")
    from tests import networks

    path = tmp_path_factory.mktemp("exported") / "own.xml"
    conversion_child.export(networks.network(nc=1), path, half=True)
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Callable[[str, Path], Graph]:
    """Puts `exported` under a name into a models folder, as if an earlier start had converted it there."""
    folders: dict[str, Path] = {}

    def put(name: str, models: Path) -> Graph:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("converted")
            put_graph(exported, folders[name] / name)
            find_graph(name, folders[name])
        shutil.copytree(folders[name], models, dirs_exist_ok=True)
        return find_graph(name, models)

    return put


def put_graph(exported: Path, target: Path) -> Path:
    for suffix in (".xml", ".bin"):
        shutil.copyfile(exported.with_suffix(suffix), target.with_suffix(suffix))
    return target


def copy_of(graph: Graph) -> Path:
    """Beside the models folder, for `copying`."""
    return put_graph(graph.xml, graph.xml.parents[2] / "copy.xml")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class ReleaseServer(http.server.ThreadingHTTPServer):
    """Serves `files`; `behave`, if set, answers in place of the ordinary reply."""

    files: dict[str, bytes]
    behave: Callable[[http.server.BaseHTTPRequestHandler], None] | None = None
    asked: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class ReleaseHandler(http.server.BaseHTTPRequestHandler):
    server: ReleaseServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.behave:
            return self.server.behave(self)
        body = self.server.files.get(self.path[1:])
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def release() -> Iterator[ReleaseServer]:
    with ReleaseServer(("127.0.0.1", 0), ReleaseHandler) as server:
        server.files, server.asked = {}, []
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


# --- conversion -----------------------------------------------------------------------------------------------------


def test_checkpoint_is_converted_once_without_torch_in_this_process(checkpoint: Path, models: Path) -> None:
    shutil.copyfile(checkpoint, models / "small.pt")
    script = f"""
import pathlib, sys
import numpy as np
from guardianberry.detection.weights import find_graph
graph = find_graph("small.pt", pathlib.Path({str(models)!r}))
assert not [m for m in ("openvino", "urllib.request", "cv2") if m in sys.modules]
from guardianberry.detection.detector import Detector
from guardianberry.detection.preparation import Preparation
detector = Detector(graph, frame_width_px=96, frame_height_px=64, conf_thres=.25, iou_thres=.45, max_det=9)
detector.find_people(np.zeros((64, 96, 3), np.uint8))
assert detector.model_name == "small.pt"
print([m for m in ("torch", "boto3", "openvino_telemetry") if sys.modules.get(m)], graph.xml.name)
"""

    def run() -> str:
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    name = f"small-{sha256(checkpoint.read_bytes())[:8]}-v{graphs.CONVERTER_VERSION}.xml"
    assert run() == f"[] {name}\n"
    made = (models / ".cache" / name).stat()
    assert run() == f"[] {name}\n"
    assert (models / ".cache" / name).stat() == made, "converted a second time"
    assert sorted(p.name for p in (models / ".cache").iterdir()) == [name.replace(".xml", ".bin"), name]
    assert (models / ".cache").stat().st_mode & 0o777 == 0o700
    assert made.st_mode & 0o777 == 0o600


def test_graph_of_our_own_is_used_by_name(exported: Path, models: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_graph(exported, models / BUNDLED)
    graph = find_graph(BUNDLED, models)
    assert graph.model_name == BUNDLED
    assert Detector(graph, frame_width_px=96, frame_height_px=64, **THRESHOLDS).model_name == BUNDLED
    with caplog.at_level(logging.INFO):
        assert find_graph(BUNDLED, models) == graph
    assert not caplog.messages, "the second time there is nothing to do and to say"


@pytest.mark.parametrize("harm", ["flip .bin", "truncate .xml", "lose .bin", "lose .xml"])
def test_damaged_cache_is_made_again(converted: Callable[[str, Path], Graph], models: Path, harm: str) -> None:
    graph = converted("own.xml", models)
    again = copying(copy_of(graph))
    action, suffix = harm.split()
    victim = graph.xml.with_suffix(suffix)
    good = victim.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    harmed = {"flip": bytes(flipped), "truncate": good[: len(good) // 2], "lose": b""}[action]
    victim.write_bytes(harmed)
    if action == "lose":
        victim.unlink()
    assert find_graph("own.xml", models, converter=again) == graph
    assert victim.read_bytes() == good


def test_a_graph_that_somebody_changed_with_its_own_checksum_is_converted_again(
    converted: Callable[[str, Path], Graph], models: Path
) -> None:
    """The sum that counts is not in the graph but in the record."""
    graph = converted("own.xml", models)
    good = {suffix: graph.xml.with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")}
    harmed = bytearray(good[".bin"])
    harmed[len(harmed) // 2] ^= 0x80
    graph.xml.with_suffix(".bin").write_bytes(harmed)
    graph.xml.write_bytes(good[".xml"].replace(sha256(good[".bin"]).encode(), sha256(bytes(harmed)).encode()))
    assert find_graph("own.xml", models) == graph
    assert {suffix: graph.xml.with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")} == good
    assert (models / ".conversions.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("record", [None, b"", b"{", b"[1, 2]", b'{"x": 1}', b"\xff\xfe"])
def test_a_graph_without_a_record_is_converted_again(
    converted: Callable[[str, Path], Graph], models: Path, record: bytes | None
) -> None:
    """One that was put into .cache/ before the first start, for instance, or whose record a power cut took."""
    graph = converted("own.xml", models)
    again, good = copying(copy_of(graph)), graph.xml.read_bytes()
    graph.xml.write_bytes(good + b" ")
    (models / ".conversions.json").unlink()
    if record is not None:
        (models / ".conversions.json").write_bytes(record)
    assert find_graph("own.xml", models, converter=again) == graph
    assert graph.xml.read_bytes() == good


def test_changed_weights_never_meet_the_old_graph(converted: Callable[[str, Path], Graph], models: Path) -> None:
    before = converted("own.xml", models)
    graph = graphs.load_openvino().Core().read_model(models / "own.xml")
    graphs.save(graph, models / "own.xml", {**graphs.read_info(graph), "anything": "other"}, half=True)
    assert find_graph("own.xml", models).xml != before.xml


def test_names_that_are_paths_or_unknown_are_refused(models: Path) -> None:
    for weights in ("../yolov5n.pt", "/etc/passwd", "yolov5n", "yolov5n.pth", "", "a/b.pt", ".."):
        with pytest.raises(WeightsError, match="give the name"):
            find_graph(weights, models)
    with pytest.raises(WeightsError, match=r"mine.pt is not in .*Put it there.*yolov5n.pt"):
        find_graph("mine.pt", models, release_url=NOWHERE)


# --- hostile and broken files ---------------------------------------------------------------------------------------


def test_pickle_with_a_payload_is_refused_and_not_run(tmp_path: Path, models: Path) -> None:
    """One that is not in a zip meets the real daemon in tests/test_security.py."""
    pytest.importorskip("torch")
    victim = tmp_path / "executed"
    (models / "evil.pt").write_bytes(hostile_zip(victim))
    with pytest.raises(WeightsError, match=r"evil.pt cannot be used.*no code from this file was run"):
        find_graph("evil.pt", models)
    assert not victim.exists()
    pickle.loads(pickle.dumps(Payload(victim)))
    assert victim.exists(), "the payload must be live for this test to mean anything"


def test_onnx_files_are_refused_with_a_way_out(models: Path) -> None:
    (models / "mine.onnx").write_bytes(b"anything")
    with pytest.raises(
        WeightsError, match=r"mine.onnx.*cannot be used. Use the .pt file that it was exported from.*best.pt"
    ):
        find_graph("mine.onnx", models)


def test_a_file_that_is_mostly_a_hole_is_refused_unread(models: Path) -> None:
    with (models / "mine.pt").open("wb") as file:
        file.truncate(1 << 42)  # it takes no room on the disk, and hours to hash
    with pytest.raises(WeightsError, match="more than any YOLOv5"):
        find_graph("mine.pt", models)


@pytest.mark.parametrize(
    "harm", ["truncated .xml", "truncated .bin", "huge", "foreign", "no .bin", "old", "from .onnx"]
)
def test_broken_graphs_are_refused(exported: Path, models: Path, harm: str) -> None:
    xml = put_graph(exported, models / "bad.xml")
    text, weights = xml.read_text(), xml.with_suffix(".bin")
    if harm == "truncated .xml":
        xml.write_text(text[: len(text) // 2])
    elif harm == "truncated .bin":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif harm == "huge":
        wide = re.sub(r'shape="8,', 'shape="8000000000,', text).replace("<dim>8</dim>", "<dim>8000000000</dim>")
        assert wide.count("8000000000") > 10
        xml.write_text(wide)
    elif harm == "foreign":
        xml.write_text(text.replace("<guardianberry>", "<somebody>").replace("</guardianberry>", "</somebody>"))
    elif harm == "from .onnx":
        xml.write_text(text.replace("&quot;kind&quot;: &quot;heads&quot;", "&quot;kind&quot;: &quot;decoded&quot;"))
    elif harm == "old":
        xml.write_text(text.replace("converter_version&quot;: ", "converter_version&quot;: 99"))
    else:
        weights.unlink()
    with pytest.raises(WeightsError, match=r"bad\.(xml|bin) (cannot be used: .+|is missing)") as caught:
        find_graph("bad.xml", models)
    assert not isinstance(caught.value, UnavailableError), "the file is at fault, not this computer"
    if harm == "from .onnx":
        assert "it was made from an .onnx file" in str(caught.value)
    if harm == "foreign":
        assert "was not made by `python -m guardianberry.convert`" in str(caught.value)


def test_truncated_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    from guardianberry.detection.yolov5 import CheckpointError

    body = checkpoint.read_bytes()
    (tmp_path / "short.pt").write_bytes(body[: len(body) // 2])
    with pytest.raises(CheckpointError, match=r"short.pt cannot be used: .+ Use an official"):
        conversion_child.convert_checkpoint(tmp_path / "short.pt", tmp_path / "short.xml", half=False)
    assert not (tmp_path / "short.xml").exists()


# --- a conversion that dies -----------------------------------------------------------------------------------------


def dying(statement: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import os, signal, sys, time; sys.stderr.write('last words\\n'); {statement}")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGILL)", r"was killed by SIGILL: torch does not run on this CPU \(last words\)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"was killed by SIGKILL, perhaps for lack of memory \(last words\)"),
        ("sys.exit(7)", r"ended with code 7 \(last words\)"),
        ("sys.exit(0)", r"ended with code 0 \(last words\)"),
    ],
)
def test_dead_conversion_names_its_reason_and_what_to_do(models: Path, statement: str, reason: str) -> None:
    (models / "own.pt").write_bytes(b"weights")
    command = "env/bin/python -m guardianberry.convert models/own.pt models/own.xml"
    with pytest.raises(UnavailableError, match=reason) as caught:
        find_graph("own.pt", models, converter=dying(statement))
    assert command in str(caught.value)


def test_computer_without_torch_is_told_what_to_do(models: Path) -> None:
    (models / "own.pt").write_bytes(b"weights")
    statement = (
        "import sys; sys.modules['torch'] = None; "
        "from guardianberry.detection.conversion_child import main; sys.exit(main(sys.argv[1:]))"
    )
    with pytest.raises(UnavailableError, match=r"ModuleNotFoundError: .*torch.* What to do"):
        find_graph("own.pt", models, converter=(sys.executable, "-c", statement))


def test_a_graph_that_was_converted_elsewhere_is_taken(checkpoint: Path, models: Path, tmp_path: Path) -> None:
    """What the message says, step by step."""
    shutil.copyfile(checkpoint, models / "own.pt")
    with pytest.raises(UnavailableError) as caught:
        find_graph("own.pt", models, converter=dying("sys.exit(9)"))
    advice = re.search(
        r"env/bin/python (-m guardianberry.convert) models/(own.pt) models/(own.xml)`, copy own.xml and own.bin .*"
        r"set WEIGHTS to own.xml",
        str(caught.value),
    )
    assert advice
    command = [sys.executable, *advice[1].split(), str(checkpoint), str(models / advice[3])]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    assert find_graph("own.xml", models).model_name == "own.xml"


def test_the_bundled_model_is_used_when_a_conversion_dies(
    converted: Callable[[str, Path], Graph], models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    converted(BUNDLED, models)
    (models / "own.pt").write_bytes(b"weights")
    graph = find_graph("own.pt", models, converter=dying("os.kill(os.getpid(), signal.SIGILL)"))
    assert graph.model_name == BUNDLED
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "SIGILL" in warning
    assert f"the bundled {BUNDLED} is used" in warning


def noting(models: Path, statement: str) -> tuple[str, ...]:
    """A converter that leaves a note of each run, then does `statement`."""
    return dying(f"open({str(models / 'runs')!r}, 'a').write('x'); {statement}")


LASTING = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "no AVX": "os.kill(os.getpid(), signal.SIGILL)",
    "crashed": "os.kill(os.getpid(), signal.SIGSEGV)",
    "out of memory": "sys.exit(4)",
}


@pytest.mark.parametrize("statement", LASTING.values(), ids=LASTING)
def test_a_conversion_that_died_is_not_tried_again_at_each_start(
    converted: Callable[[str, Path], Graph], models: Path, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    converted(BUNDLED, models)
    (models / "own.pt").write_bytes(b"weights")
    for _ in range(3):
        caplog.clear()
        assert find_graph("own.pt", models, converter=noting(models, statement)).model_name == BUNDLED
    assert (models / "runs").read_text() == "x"
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert re.search(r"own.pt (was killed by|ended with code 4).*last words.*tried again when the weights", warning)
    assert "set WEIGHTS to own.xml" in warning


@pytest.mark.parametrize("change", ["weights", "memory", "packages", "record"])
def test_a_conversion_that_died_is_tried_again_when_something_changed(
    models: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    (models / "own.pt").write_bytes(b"weights")
    converter = noting(models, LASTING["killed"])
    for round_number in (1, 2):
        with pytest.raises(UnavailableError):
            find_graph("own.pt", models, converter=converter)
        if round_number == 2:
            break
        if change == "weights":
            (models / "own.pt").write_bytes(b"others")
        elif change == "memory":
            monkeypatch.setattr("guardianberry.detection.conversion_record.read_text", lambda _: "MemTotal: 123 kB\n")
        elif change == "packages":
            monkeypatch.setattr("importlib.metadata.version", lambda _: "99")
        else:
            (models / ".conversions.json").unlink()
    assert (models / "runs").read_text() == "xx"


def test_a_conversion_that_took_too_long_is_not_tried_again(models: Path) -> None:
    (models / "own.pt").write_bytes(b"weights")
    converter = noting(models, "time.sleep(600)")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="took more than 1 s"):
            find_graph("own.pt", models, converter=converter, conversion_limit_s=0.6)
    assert (models / "runs").read_text() == "x"


@pytest.mark.parametrize("statement", ["sys.exit(3)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_conversion_without_space_or_ended_by_a_shutdown_is_tried_again(models: Path, statement: str) -> None:
    (models / "own.pt").write_bytes(b"weights")
    for _ in range(2):
        with pytest.raises(UnavailableError):
            find_graph("own.pt", models, converter=noting(models, statement))
    assert (models / "runs").read_text() == "xx"


def test_a_conversion_that_needs_more_memory_than_there_is_says_so(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "guardianberry.convert", str(checkpoint), str(tmp_path / "out.xml")]
    limited = ["prlimit", "--data=150000000", *command]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in weights_module.LASTING_CODES, done.stderr
    assert not (tmp_path / "out.xml").exists()


# --- beside the running daemon --------------------------------------------------------------------------------------


def waiting_for(gate: Path, statement: str) -> str:
    loop = f"while not os.path.exists({str(gate)!r}): time.sleep(0.05)"
    return f"exec({loop!r}); {statement}"


def later(preparation: Preparation) -> Graph | None:
    """What comes of the preparation; waits for its end as the daemon's loop does, pass by pass."""
    deadline_s = time.monotonic() + 60
    while preparation._thread.is_alive() and time.monotonic() < deadline_s:
        assert preparation.later_graph() is None
        time.sleep(0.05)
    return preparation.later_graph()


def test_the_bundled_model_serves_while_the_conversion_takes_its_time(
    exported: Path,
    converted: Callable[[str, Path], Graph],
    models: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    converted(BUNDLED, models)
    (models / "own.pt").write_bytes(b"weights")
    copy = f"import shutil; [shutil.copy({str(exported)!r}[:-3] + s, sys.argv[2][:-3] + s) for s in ('bin', 'xml')]"
    setup = Setup(converter=dying(waiting_for(tmp_path / "go", copy)))
    preparation = Preparation("own.pt", models, stop=threading.Event(), setup=setup)
    with caplog.at_level(logging.INFO):
        assert preparation.first_graph(patience_s=0.1).model_name == BUNDLED
    assert f"own.pt is not ready yet; the bundled {BUNDLED} is used until then" in caplog.messages
    (tmp_path / "go").touch()
    graph = later(preparation)
    assert graph is not None
    assert graph.model_name == "own.pt"
    assert preparation.later_graph() is None, "it is told once"


@pytest.mark.parametrize(("statement", "level"), [("sys.exit(1)", logging.ERROR), ("sys.exit(9)", logging.WARNING)])
@pytest.mark.parametrize("soon", [True, False])
def test_the_guard_goes_on_with_the_bundled_model_when_a_conversion_fails(
    converted: Callable[[str, Path], Graph],
    models: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    statement: str,
    level: int,
    soon: bool,
) -> None:
    converted(BUNDLED, models)
    (models / "own.pt").write_bytes(b"weights")
    setup = Setup(converter=dying(waiting_for(tmp_path / "go", statement)))
    if soon:
        (tmp_path / "go").touch()
    preparation = Preparation("own.pt", models, stop=threading.Event(), setup=setup)
    assert preparation.first_graph(patience_s=60 if soon else 0.1).model_name == BUNDLED
    (tmp_path / "go").touch()
    assert later(preparation) is None
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.levelno == level
    assert "last words" in record.getMessage()
    assert f"the bundled {BUNDLED} is used" in record.getMessage()


def test_without_a_bundled_model_the_daemon_waits_for_the_conversion(models: Path) -> None:
    (models / "own.pt").write_bytes(b"weights")
    setup = Setup(converter=dying("time.sleep(0.5); sys.exit(1)"))
    preparation = Preparation("own.pt", models, stop=threading.Event(), setup=setup)
    with pytest.raises(WeightsError, match=r"own\.pt cannot be used: last words"):
        preparation.first_graph(patience_s=0)


def test_a_name_that_is_no_file_ends_the_daemon_though_there_is_a_bundled_model(exported: Path, models: Path) -> None:
    put_graph(exported, models / BUNDLED)
    for weights in ("mine.pt", "../mine.pt", "mine.onnx"):
        with pytest.raises(WeightsError):
            Preparation(weights, models, stop=threading.Event()).first_graph(patience_s=60)


def test_a_conversion_dies_with_the_daemon_and_dumps_no_core(models: Path, tmp_path: Path) -> None:
    """After kill -9 the next start would otherwise convert beside it, in memory for one."""
    note = tmp_path / "child"
    (models / "own.pt").write_bytes(b"weights")
    converter = dying(
        "sys.path.insert(0, '.'); from guardianberry.detection.child import restrict; restrict(1 << 30);"
        f" open({str(note)!r}, 'w').write(open('/proc/self/limits').read() + f'pid {{os.getpid()}}.'); time.sleep(600)"
    )
    script = f"""
import pathlib, threading
from guardianberry.detection.weights import Setup, find_graph
find_graph("own.pt", pathlib.Path({str(models)!r}), setup=Setup(converter={converter!r}))
"""
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    deadline_s = time.monotonic() + 60
    while not (note.is_file() and (found := re.search(r"pid (\d+)\.", note.read_text()))):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while Path(f"/proc/{found[1]}").exists() and "State:\tZ" not in Path(f"/proc/{found[1]}/status").read_text():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    limits = note.read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert re.search(rf"Max data size +{1 << 30} ", limits)


def test_endless_conversion_is_ended(models: Path) -> None:
    (models / "own.pt").write_bytes(b"weights")
    with pytest.raises(UnavailableError, match="took more than 1 s"):
        find_graph("own.pt", models, converter=dying("time.sleep(600)"), conversion_limit_s=0.6)


def test_stop_ends_a_conversion_at_once(models: Path) -> None:
    (models / "own.pt").write_bytes(b"weights")
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    started_s = time.monotonic()
    with pytest.raises(WeightsError, match="stopped"):
        find_graph("own.pt", models, converter=dying("time.sleep(600)"), stop=stop)
    assert time.monotonic() - started_s < 20


def test_cache_that_cannot_be_kept_is_an_error_not_a_crash(models: Path) -> None:
    (models / "own.pt").write_bytes(b"weights")
    (models / ".cache").write_text("in the way")
    with pytest.raises(WeightsError, match="cannot be read, or its graph not kept"):
        find_graph("own.pt", models)


WITHOUT_POWERS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")


@needs_root
@pytest.mark.parametrize("closed", [".cache", RECORD_NAME, "."])
def test_a_cache_of_root_is_replaced_by_a_private_folder_with_the_command_that_helps(
    exported: Path,
    open_folder: Path,  # noqa: F811
    closed: str,
) -> None:
    """As one start with sudo leaves it, with the users swapped: root without its powers can read `env/` at least."""
    models = open_folder / "my models"
    models.mkdir()
    for name in ("own.xml", BUNDLED):
        put_graph(exported, models / name)
        for suffix in (".xml", ".bin"):
            (models / name).with_suffix(suffix).chmod(0o644)
    (models / ".cache").mkdir(0o755)
    (models / RECORD_NAME).write_text("{}")
    os.chown(models / closed, ANOTHER_USER, ANOTHER_USER)
    (models / closed).chmod(0o755 if closed == "." else 0o700)
    copy = 'cp "$1" "$2"; cp "${1%.xml}.bin" "${2%.xml}.bin"'  # the tests' Python may be in root's home
    before = sorted(models.rglob("*"))
    script = f"""
import logging, pathlib, sys, threading
from guardianberry.detection.weights import BUNDLED, Search, Setup
logging.basicConfig(format="%(levelname)s %(message)s")
search = Search(pathlib.Path({str(models)!r}), threading.Event(), Setup(converter={("sh", "-c", copy, "sh")!r}))
first, second = search.graph("own.xml"), search.graph(BUNDLED)
assert search.graph(BUNDLED) == second
print(first.xml.parent.stat().st_mode & 0o777 == 0o700 and first.xml.parent == second.xml.parent, first.xml)
"""
    done = subprocess.run(
        [*WITHOUT_POWERS, sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    is_private, kept = done.stdout.split()
    assert is_private == "True"
    assert not Path(kept).exists(), "removed at the end"
    (warning,) = done.stderr.splitlines()
    user = pwd.getpwuid(os.geteuid()).pw_name
    assert warning.startswith("WARNING No graph can be kept in ")
    assert warning.endswith(f"Permission denied: sudo chown -R {user} '{models}'")
    assert sorted(models.rglob("*")) == before


# --- the official release -------------------------------------------------------------------------------------------


def copying(graph: Path) -> tuple[str, ...]:
    """A converter that knows its answer."""
    copy = "shutil.copy(sys.argv[1][:-3] + suffix, sys.argv[3][:-3] + suffix)"
    return (sys.executable, "-c", f"import shutil, sys\nfor suffix in ('bin', 'xml'): {copy}", str(graph))


def test_missing_official_weights_are_downloaded_once(exported: Path, models: Path, release: ReleaseServer) -> None:
    body = bytes(range(256)) * 1000
    release.files["yolov5n.pt"] = body
    options: dict[str, Any] = {
        "release_url": release.url,
        "official_sha256": {"yolov5n.pt": sha256(body)},
        "converter": copying(exported),
    }
    graph = find_graph("yolov5n.pt", models, **options)
    assert graph.model_name == "yolov5n.pt"
    assert (models / "yolov5n.pt").read_bytes() == body
    assert (models / "yolov5n.pt").stat().st_mode & 0o777 == 0o600
    assert find_graph("yolov5n.pt", models, **options) == graph
    assert release.asked == ["/yolov5n.pt"]


def answer_short(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b"x" * 1000)


def answer_silence(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"x")
    handler.wfile.flush()
    time.sleep(3)


def answer_elsewhere(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "ftp://127.0.0.1/yolov5n.pt")
    handler.end_headers()


GOOD_BODY = hostile_zip(Path("never-made"))  # a whole zip


def answer_with(*headers: tuple[str, str], code: int = 200) -> Any:
    """The right bytes under headers that no client can make sense of."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(GOOD_BODY)

    return answer


def answer_too_much(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(bytes(1 << 16))


BAD_HEADERS = {
    "length in words": (("Content-Length", "many"),),
    "negative length": (("Content-Length", "-5"),),
    "huge length": (("Content-Length", "9" * 5000),),
    "two lengths": (("Content-Length", str(len(GOOD_BODY))), ("Content-Length", "17")),
    "shorter": (("Content-Length", str(len(GOOD_BODY) - 1)),),
    "broken chunks": (("Transfer-Encoding", "chunked"),),
}
BAD_LOCATIONS = (
    "",
    "http://[",
    "http://127.0.0.1:99999/",
    "http://\x7f/",
    "//",
    "file:///etc/passwd",
    "http:",
    "/loop",
)


@pytest.mark.parametrize("headers", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_an_answer_with_bad_headers_is_no_success(
    models: Path, release: ReleaseServer, headers: tuple[tuple[str, str], ...]
) -> None:
    release.behave = answer_with(*headers)
    setup: dict[str, Any] = {"official_sha256": {"yolov5n.pt": None}, "release_url": release.url}
    with pytest.raises(UnavailableError, match=r"cannot be downloaded \(.+\)\. Download"):
        find_graph("yolov5n.pt", models, **setup)
    assert list(models.iterdir()) == []


@pytest.mark.parametrize("location", BAD_LOCATIONS)
def test_a_redirect_to_nonsense_is_no_success(models: Path, release: ReleaseServer, location: str) -> None:
    release.behave = answer_with(("Location", location), code=302)
    setup: dict[str, Any] = {"official_sha256": {"yolov5n.pt": None}, "release_url": release.url}
    with pytest.raises(UnavailableError, match=r"cannot be downloaded \(.+\)\. Download"):
        find_graph("yolov5n.pt", models, **setup)
    assert list(models.iterdir()) == []


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (None, "404"),
        (answer_short, "ended after 1000 of 5000 bytes"),
        (answer_silence, "no byte came for 1 s"),
        (answer_elsewhere, "redirected to ftp://127.0.0.1/yolov5n.pt: refused"),
        (answer_too_much, "more than 1000000 bytes"),
    ],
)
def test_failed_download_says_why_and_leaves_nothing(
    models: Path, release: ReleaseServer, behave: Any, reason: str
) -> None:
    release.behave = behave
    with pytest.raises(UnavailableError, match=reason) as caught:
        find_graph("yolov5n.pt", models, release_url=release.url, silence_limit_s=1, max_download_bytes=1_000_000)
    advice = f"Download {release.url}yolov5n.pt on another computer and copy it into {models}/."
    assert advice in str(caught.value)
    assert list(models.iterdir()) == []


def test_wrong_download_is_not_kept(models: Path, release: ReleaseServer) -> None:
    release.files["yolov5n.pt"] = b"something else"
    with pytest.raises(UnavailableError, match=f"{sha256(b'something else')}.*{OFFICIAL_SHA256['yolov5n.pt']}"):
        find_graph("yolov5n.pt", models, release_url=release.url)
    assert list(models.iterdir()) == []


def test_no_network_says_what_to_do(models: Path) -> None:
    with pytest.raises(UnavailableError, match=r"cannot be downloaded \(.*refused.*copy it into"):
        find_graph("yolov5n.pt", models, release_url=NOWHERE)


def test_the_bundled_model_is_used_without_a_network(
    converted: Callable[[str, Path], Graph], models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    converted(BUNDLED, models)
    graph = find_graph("yolov5n.pt", models, release_url=NOWHERE)
    assert graph.model_name == BUNDLED
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "yolov5n.pt is missing" in warning
    assert f"the bundled {BUNDLED} is used" in warning


def test_stop_ends_a_download_at_once(
    exported: Path, models: Path, release: ReleaseServer, caplog: pytest.LogCaptureFixture
) -> None:
    put_graph(exported, models / BUNDLED)
    release.behave = answer_silence
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(WeightsError, match="stopped"):
        find_graph("yolov5n.pt", models, release_url=release.url, stop=stop)
    assert not caplog.records, "nobody asked for the bundled model"


def test_official_name_with_another_hash_is_refused_and_kept(exported: Path, models: Path) -> None:
    put_graph(exported, models / BUNDLED)
    (models / "yolov5n.pt").write_bytes(b"mine")
    with pytest.raises(WeightsError, match=f"refused.*{sha256(b'mine')}.*{OFFICIAL_SHA256['yolov5n.pt']}.*Delete it"):
        find_graph("yolov5n.pt", models, release_url=NOWHERE)
    assert (models / "yolov5n.pt").read_bytes() == b"mine"


def test_unknown_official_hash_is_recorded_and_then_binding(models: Path) -> None:
    for body in (b"first", b"first", b"second"):
        (models / "yolov5x.pt").write_bytes(body)
        with pytest.raises(WeightsError) as caught:
            find_graph("yolov5x.pt", models, converter=dying("sys.exit(7)"))
    assert (models / ".yolov5x.pt.sha256").read_text() == f"{sha256(b'first')}  yolov5x.pt\n"
    assert sha256(b"second") in str(caught.value)
    assert sha256(b"first") in str(caught.value)


@pytest.mark.skipif(not OFFICIAL_WEIGHTS.is_file(), reason=f"needs {OFFICIAL_WEIGHTS}, which is not published")
def test_hash_in_the_program_is_that_of_the_official_file() -> None:
    assert graphs.file_sha256(OFFICIAL_WEIGHTS) == OFFICIAL_SHA256["yolov5n.pt"]
