"""WEIGHTS, a file name, becomes a graph that the detector can load: found, fetched, checked, converted, kept.

Every file goes through a conversion child once (see convert.py); what comes out is kept in `.cache/` beside it, named
by the sha256 of its source, so that a changed file or a newer converter never meets an old graph. On a normal start
this module reads and hashes two files; torch, OpenVINO and urllib are not imported.
"""

from __future__ import annotations

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

from guardianberry.detection.convert import CONVERTERS, REFUSED
from guardianberry.detection.openvino_model import CONVERTER_VERSION, file_sha256
from guardianberry.machine import environment_without_credentials

log = logging.getLogger(__name__)

RELEASE_URL = "https://github.com/ultralytics/yolov5/releases/download/v7.0/"
# None: no hash that independent sources agree on. A guess would lock out the true file, so the first one seen is
# recorded beside it (.NAME.sha256) and binding from then on. That is enough: it comes over HTTPS, and no code in a
# checkpoint is ever run.
OFFICIAL_SHA256: Mapping[str, str | None] = {
    "yolov5n.pt": "4f180cf23ba0717ada0badd6c685026d73d48f184d00fc159c2641284b2ac0a3",
    "yolov5s.pt": "8b3b748c1e592ddd8868022e8732fde20025197328490623cc16c6f24d0782ee",
    "yolov5m.pt": "61d933360ba5a7733a36764996c800287d973889d875227f5beedd2473a97a56",
    "yolov5l.pt": None,
    "yolov5x.pt": None,
}
BUNDLED = "guardianberry-n.xml"
MAX_DOWNLOAD_BYTES = 400 << 20  # yolov5x.pt, the largest, has 166 MiB
SILENCE_LIMIT_S = 15.0  # of a download: at boot there is often no network yet, and nobody guards meanwhile
CONVERSION_LIMIT_S = 600.0  # 3 s on a PC; a Pi with a worn SD card needs its time
CONVERTER = (sys.executable, "-m", "guardianberry.convert")
POLL_S = 0.2  # how soon a stop is noticed


class WeightsError(Exception):
    """No detector from these weights; the message says why and what to do."""


class UnavailableError(WeightsError):
    """Not the weights' fault: no network, or the conversion crashed. The bundled model can take over."""


class Graph(NamedTuple):
    """A converted graph on disk; `model_name` is the file name of the weights it was made from."""

    xml: Path
    model_name: str


class _Job(NamedTuple):
    """What find_graph was asked for besides the weights."""

    stop: threading.Event
    release_url: str
    official_sha256: Mapping[str, str | None]
    silence_limit_s: float
    conversion_limit_s: float
    converter: Sequence[str]


def find_graph(
    weights: str,
    models_folder: Path,
    *,
    stop: threading.Event | None = None,
    release_url: str = RELEASE_URL,
    official_sha256: Mapping[str, str | None] = OFFICIAL_SHA256,
    silence_limit_s: float = SILENCE_LIMIT_S,
    conversion_limit_s: float = CONVERSION_LIMIT_S,
    converter: Sequence[str] = CONVERTER,
) -> Graph:
    """The graph for `weights` in `models_folder`. Raises WeightsError, within 0.2 s also when `stop` gets set.

    An official checkpoint that is missing is downloaded. Where that fails, or the conversion crashes, the bundled model
    takes its place and one WARNING says so. A file that is there but wrong is refused, never replaced, never deleted.
    """
    job = _Job(stop or threading.Event(), release_url, official_sha256, silence_limit_s, conversion_limit_s, converter)
    source, bundled = models_folder / weights, models_folder / BUNDLED
    if source.name != weights or source.suffix not in CONVERTERS:
        raise WeightsError(f"WEIGHTS = {weights!r}: give the name of a .pt, .onnx or .xml file in {models_folder}/")
    try:
        models_folder.mkdir(exist_ok=True)
        if not source.is_file():
            _download(source, job)
        return _converted(source, job)
    except UnavailableError as error:
        if source == bundled or not bundled.is_file() or job.stop.is_set():
            raise
        log.warning("%s Until the next start the bundled %s is used", error, BUNDLED)
        return _converted(bundled, job)
    except OSError as error:
        raise WeightsError(f"{weights} cannot be read, or its graph not kept, in {models_folder}/: {error}") from error


def _download(source: Path, job: _Job) -> None:
    """Fetch an official checkpoint; UnavailableError where it does not come."""
    if source.name not in job.official_sha256:
        known = ", ".join([*job.official_sha256, BUNDLED])
        raise WeightsError(
            f"{source.name} is not in {source.parent}/. Put it there, or set WEIGHTS to one of: {known}."
        )
    from guardianberry.detection.fetch import FetchError, fetch

    url = job.release_url + source.name
    log.info("%s is not in %s/; downloading it once from %s", source.name, source.parent, url)
    try:
        fetch(
            url,
            source,
            sha256=job.official_sha256[source.name],
            stop=job.stop,
            max_bytes=MAX_DOWNLOAD_BYTES,
            silence_limit_s=job.silence_limit_s,
        )
    except FetchError as error:
        raise UnavailableError(
            f"{source.name} is missing and cannot be downloaded ({error}). Download {url} on another computer and copy"
            f" it into {source.parent}/."
        ) from error


def _converted(source: Path, job: _Job) -> Graph:
    """The cached graph of `source`, made now if need be."""
    parts = [source, source.with_suffix(".bin")] if source.suffix == ".xml" else [source]
    for part in parts:
        if not part.is_file():
            raise WeightsError(f"{part.name} is missing in {part.parent}/: a graph is two files, .xml and .bin.")
    sha256 = file_sha256(*parts)
    if source.name in job.official_sha256:
        _check_official(source, sha256, job.official_sha256[source.name])
    cache = source.parent / ".cache"
    xml = cache / f"{source.stem}-{sha256[:8]}-v{CONVERTER_VERSION}.xml"
    if not _is_whole(xml):
        cache.mkdir(mode=0o700, exist_ok=True)
        started_s = time.monotonic()
        log.info("%s is being converted, which is done once", source.name)
        _convert(source, xml, job)
        log.info("%s converted in %.1f s, kept as .cache/%s", source.name, time.monotonic() - started_s, xml.name)
    return Graph(xml, source.name)


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
    """True if a graph was written to its end and its .bin still has the checksum that the .xml carries."""
    try:
        text = xml.read_bytes()
        recorded = re.search(rb'<bin_sha256 value="([0-9a-f]{64})"', text)
        whole = recorded and text.rstrip().endswith(b"</net>")
        if recorded and whole and file_sha256(xml.with_suffix(".bin")) == recorded[1].decode():
            return True
    except FileNotFoundError:
        return False
    log.warning("The cached graph %s is damaged and is made again", xml.name)
    return False


def _convert(source: Path, xml: Path, job: _Job) -> None:
    """Run the child to its end; WeightsError with its reason, and a way out, if there is no graph afterwards."""
    root = Path(__file__).resolve().parents[2]
    command = [*job.converter, str(source.absolute()), str(xml.absolute())]
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            command,
            cwd=root,
            env=environment_without_credentials(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        ending = _wait(child, job)
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines() or [""]
    if job.stop.is_set():
        raise WeightsError(f"{source.name}: stopped in mid-conversion.")
    if child.returncode == REFUSED:
        raise WeightsError(f"{source.name} cannot be used: {lines[-1]}")
    if child.returncode != 0 or not _is_whole(xml):
        way_out = f"env/bin/python -m guardianberry.convert models/{source.name} models/{xml.name}"
        said = f" ({lines[-1]})" if lines[-1] else ""
        raise UnavailableError(
            f"The conversion of {source.name} {ending}{said}. The way out: on another computer"
            f" with this program run `{way_out}`, then copy {xml.name} and {xml.stem}.bin from its models/ into"
            f" {xml.parent}/ here."
        )


def _wait(child: subprocess.Popen[bytes], job: _Job) -> str:
    """Wait for the child's end, or make one when `stop` is set or time is up; returns how it ended, in words."""
    deadline_s = time.monotonic() + job.conversion_limit_s
    try:
        while child.poll() is None and time.monotonic() < deadline_s and not job.stop.is_set():
            try:
                child.wait(POLL_S)
            except subprocess.TimeoutExpired:
                continue
        if child.poll() is None:
            return f"took more than {job.conversion_limit_s:.0f} s"
    finally:
        child.kill()  # no-op after its end
        child.wait()
    if child.returncode >= 0:
        return f"ended with code {child.returncode}"
    name = signal.Signals(-child.returncode).name
    hint = {"SIGKILL": ", short of memory perhaps", "SIGILL": ": torch does not run on this CPU"}
    return f"was killed by {name}{hint.get(name, '')}"
