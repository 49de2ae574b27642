"""From WEIGHTS, a file name, to a graph that the detector can load.

Each file is converted once, in a child process (see convert.py). The graph is kept in `.cache/` beside the file, under
the sha256 of its source: a changed file or a newer converter gets a graph of its own. On a normal start this module
reads and hashes two files, and imports neither torch nor OpenVINO nor urllib.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from guardianberry.detection.adapter import adapted_name, adapter_path
from guardianberry.detection.convert import CONVERTERS, REFUSED
from guardianberry.detection.openvino_model import CONVERTER_VERSION, file_sha256
from guardianberry.machine import for_child

log = logging.getLogger(__name__)

# None: independent sources do not agree on the hash. The hash of the first file seen is recorded beside it
# (.NAME.sha256) and required from then on. It comes over HTTPS, and no code in a checkpoint is ever run.
OFFICIAL_SHA256: Mapping[str, str | None] = {
    "yolov5n.pt": "4f180cf23ba0717ada0badd6c685026d73d48f184d00fc159c2641284b2ac0a3",
    "yolov5s.pt": "8b3b748c1e592ddd8868022e8732fde20025197328490623cc16c6f24d0782ee",
    "yolov5m.pt": "61d933360ba5a7733a36764996c800287d973889d875227f5beedd2473a97a56",
    "yolov5l.pt": None,
    "yolov5x.pt": None,
}
BUNDLED = "guardianberry-n.xml"
DOWNLOAD_LIMIT_S = 900.0
_DOWNLOAD_VARIABLES = ("*_proxy", "*_PROXY", "SSL_CERT_*")
POLL_S = 0.2  # a child is ended so soon after a stop


class WeightsError(Exception):
    """These weights cannot be used; the message says why and what to do."""


class UnavailableError(WeightsError):
    """The weights are not at fault: no network, or the conversion failed here. The bundled model can be used."""


class Graph(NamedTuple):
    """A converted graph on disk; `model_name` is the file name of the weights it was made from."""

    xml: Path
    model_name: str


class Setup(NamedTuple):
    """Where weights come from and how long that may take; tests change it."""

    release_url: str = "https://github.com/ultralytics/yolov5/releases/download/v7.0/"
    official_sha256: Mapping[str, str | None] = OFFICIAL_SHA256
    silence_limit_s: float = 15.0  # of a download without a byte: at boot there is often no network yet
    max_download_bytes: int = 400 << 20  # yolov5x.pt, the largest, has 166 MiB
    conversion_limit_s: float = 600.0  # 3 s on a PC; much longer on a Pi with a slow SD card
    converter: Sequence[str] = (sys.executable, "-m", "guardianberry.convert")


DEFAULTS = Setup()


def find_graph(
    weights: str, models_folder: Path, *, stop: threading.Event | None = None, setup: Setup = DEFAULTS
) -> Graph:
    """The graph for the file `weights` in `models_folder`. Raises WeightsError, also within 0.2 s after `stop` is set.

    A missing official checkpoint is downloaded. If that or the conversion fails, the bundled model is used and a
    WARNING says so. A file with wrong content is refused; it is never replaced or deleted.
    """
    stop = stop or threading.Event()
    source, bundled = models_folder / weights, models_folder / BUNDLED
    if source.name != weights or source.suffix not in {*CONVERTERS, ".onnx"}:
        raise WeightsError(f"WEIGHTS = {weights!r}: give the name of a .pt or .xml file in {models_folder}/")
    if source.suffix == ".onnx":
        raise WeightsError(
            f"WEIGHTS = {weights!r}: .onnx files cannot be used. Use the .pt file that it was exported from; YOLOv5's"
            " train.py writes it to runs/train/exp*/weights/best.pt."
        )
    try:
        models_folder.mkdir(exist_ok=True)
        if not source.is_file():
            _download(source, setup, stop)
        return _converted(source, setup, stop)
    except UnavailableError as error:
        if source == bundled or not bundled.is_file() or stop.is_set():
            raise
        log.warning("%s Until the next start the bundled %s is used", error, BUNDLED)
        return _converted(bundled, setup, stop)
    except OSError as error:
        raise WeightsError(f"{weights} cannot be read, or its graph not kept, in {models_folder}/: {error}") from error


def _download(source: Path, setup: Setup, stop: threading.Event) -> None:
    """Download an official checkpoint; UnavailableError if that fails."""
    if source.name not in setup.official_sha256:
        known = ", ".join([*setup.official_sha256, BUNDLED])
        raise WeightsError(
            f"{source.name} is not in {source.parent}/. Put it there, or set WEIGHTS to one of: {known}."
        )
    url, sha256 = setup.release_url + source.name, setup.official_sha256[source.name]
    log.info("%s is not in %s/; downloading it once from %s", source.name, source.parent, url)
    command = [sys.executable, "-m", "guardianberry.detection.fetch", url, str(source.absolute()), sha256 or "-"]
    ended = _run([*command, str(setup.max_download_bytes), str(setup.silence_limit_s)], DOWNLOAD_LIMIT_S, stop)
    source.with_name(f".{source.name}.part").unlink(missing_ok=True)
    if ended.code != 0 or not source.is_file():
        if ended.code == -signal.SIGALRM:
            ended = ended._replace(last_line=f"no byte came for {setup.silence_limit_s:.0f} s")
        raise UnavailableError(
            f"{source.name} is missing and cannot be downloaded ({ended.last_line or ended.how}). Download {url} on"
            f" another computer and copy it into {source.parent}/."
        )


def _converted(source: Path, setup: Setup, stop: threading.Event) -> Graph:
    """The graph of `source`; of an official checkpoint with its adapter, if there is one and it fits."""
    parts = [source, source.with_suffix(".bin")] if source.suffix == ".xml" else [source]
    for part in parts:
        if not part.is_file():
            raise WeightsError(f"{part.name} is missing in {part.parent}/: a graph is two files, .xml and .bin.")
    if source.name in setup.official_sha256:
        _check_official(source, file_sha256(source), setup.official_sha256[source.name])
        if adapter_path(source).is_file():
            try:
                return _cached([source, adapter_path(source)], adapted_name(source), setup, stop)
            except UnavailableError:
                raise
            except WeightsError as error:
                if stop.is_set():
                    raise
                log.warning("%s is used without %s: %s", source.name, adapter_path(source).name, error)
    return _cached(parts, source.name, setup, stop)


def _cached(parts: list[Path], model_name: str, setup: Setup, stop: threading.Event) -> Graph:
    """The cached graph of some files, a checkpoint with its adapter for example; converted now if need be."""
    source, cache = parts[0], parts[0].parent / ".cache"
    xml = cache / f"{source.stem}-{file_sha256(*parts)[:8]}-v{CONVERTER_VERSION}.xml"
    if not _is_whole(xml):
        cache.mkdir(mode=0o700, exist_ok=True)
        started_s = time.monotonic()
        log.info("%s is being converted; this is done once", model_name)
        _convert(parts, xml, setup, stop)
        log.info("%s converted in %.1f s, kept as .cache/%s", model_name, time.monotonic() - started_s, xml.name)
    return Graph(xml, model_name)


def _check_official(source: Path, sha256: str, expected: str | None) -> None:
    record = source.with_name(f".{source.name}.sha256")
    if expected is None and record.is_file():
        expected = record.read_text(encoding="ascii", errors="replace").partition(" ")[0].strip()
    if expected is None:
        record.write_text(f"{sha256}  {source.name}\n", encoding="ascii")
        log.info("%s: sha256 %s recorded in %s and required from now on", source.name, sha256, record.name)
    elif sha256 != expected:
        raise WeightsError(
            f"{source} is refused: its sha256 is {sha256}, the official file's is {expected}. Delete it (it is then"
            " downloaded again), or give weights of your own another name and set WEIGHTS to that."
        )


def _is_whole(xml: Path) -> bool:
    """True if the .xml is complete and the .bin has the checksum that the .xml holds."""
    try:
        text = xml.read_bytes()
        recorded = re.search(rb'<bin_sha256 value="([0-9a-f]{64})"', text)
        whole = recorded and text.rstrip().endswith(b"</net>")
        if recorded and whole and file_sha256(xml.with_suffix(".bin")) == recorded[1].decode():
            return True
    except FileNotFoundError:
        return False
    log.warning("The cached graph %s is damaged and is converted again", xml.name)
    return False


def _convert(parts: list[Path], xml: Path, setup: Setup, stop: threading.Event) -> None:
    """Run the conversion child; WeightsError with the reason and what to do if there is no graph afterwards."""
    source, adapters = parts[0], [part for part in parts if part.suffix == ".npz"]
    files = [str(path.absolute()) for path in (source, xml, *adapters)]
    ended = _run([*setup.converter, *files], setup.conversion_limit_s, stop)
    if ended.code == REFUSED:
        raise WeightsError(f"{source.name} cannot be used: {ended.last_line}")
    if ended.code != 0 or not _is_whole(xml):
        names = " ".join(f"models/{path.name}" for path in (source, xml, *adapters))
        command = f"env/bin/python -m guardianberry.convert {names}"
        said = f" ({ended.last_line})" if ended.last_line else ""
        raise UnavailableError(
            f"The conversion of {source.name} {ended.how}{said}. What to do: on another computer with this program run"
            f" `{command}`, then copy {xml.name} and {xml.stem}.bin from its models/ into {xml.parent}/ here."
        )


class _Ended(NamedTuple):
    """How a child ended: exit code (negative: signal), the same in words, and the last line of its output."""

    code: int
    how: str
    last_line: str


def _run(command: Sequence[str], limit_s: float, stop: threading.Event) -> _Ended:
    """Run a child of ours to its end, or kill it after `limit_s`; WeightsError when `stop` is set."""
    deadline_s = time.monotonic() + limit_s
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            command,
            **for_child(*_DOWNLOAD_VARIABLES, folder=Path(__file__).resolve().parents[2]),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            while child.poll() is None and time.monotonic() < deadline_s and not stop.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_S)
            in_time = child.poll() is not None
        finally:
            child.kill()  # does nothing after its end
            child.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines() or [""]
    if stop.is_set():
        raise WeightsError("The preparation of the weights was stopped.")
    how = _in_words(child.returncode) if in_time else f"took more than {limit_s:.0f} s"
    return _Ended(child.returncode, how, lines[-1])


def _in_words(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    hint = {"SIGKILL": ", perhaps for lack of memory", "SIGILL": ": torch does not run on this CPU"}
    return f"was killed by {name}{hint.get(name, '')}"
