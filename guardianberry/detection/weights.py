"""From WEIGHTS, a file name, to a graph that the detector can load.

A file that is missing is downloaded (download_child.py), and each one is converted once (conversion_child.py). The
graph is kept in `.cache/` beside the file, under the sha256 of its source: a changed file or a newer converter gets a
graph of its own. On a normal start this module hashes a few files, and imports neither torch nor OpenVINO nor urllib.
"""

import logging
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from guardianberry.detection import child
from guardianberry.detection.adapter import adapted_name, adapter_path
from guardianberry.detection.conversion_child import CONVERTERS, NO_MEMORY, REFUSED
from guardianberry.detection.conversion_record import RECORD_NAME, Conversions
from guardianberry.detection.openvino_model import file_sha256
from guardianberry.disk import write_atomically

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
DOWNLOAD_VARIABLES = ("*_proxy", "*_PROXY", "SSL_CERT_*")
# A conversion that ends so, also by our own time limit (SIGKILL), is not tried again: it would end so each time. 127 is
# how glibc ends a process that has no memory for a library.
_CRASHES = (signal.SIGKILL, signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
LASTING_CODES = (NO_MEMORY, 127, *(-number for number in _CRASHES))


class WeightsError(Exception):
    """These weights cannot be used; the message says why and what to do."""


class RefusedError(WeightsError):
    """The conversion refused the file: it is broken, hostile or no YOLOv5."""


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


def find_graph(
    weights: str, models_folder: Path, *, stop: threading.Event | None = None, setup: Setup | None = None
) -> Graph:
    """The graph for the file `weights` in `models_folder`. Raises WeightsError, also within 0.2 s after `stop` is set.

    A missing official checkpoint is downloaded. If that or the conversion fails here, the bundled model is used and a
    WARNING says so. A file with wrong content is refused; it is never replaced or deleted.
    """
    search = Search(models_folder, stop or threading.Event(), setup)
    try:
        return search.graph(weights)
    except UnavailableError as error:
        if not search.has_bundled_besides(weights):
            raise
        log.warning("%s Until the next start the bundled %s is used", error, BUNDLED)
        return search.graph(BUNDLED)


class Search:
    """From one weights file to its graph, with all that this may need: download, checks, conversion."""

    def __init__(self, models_folder: Path, stop: threading.Event, setup: Setup | None) -> None:
        self._folder, self._stop, self._setup = models_folder, stop, setup or Setup()
        self._conversions = Conversions(models_folder)

    def has_bundled_besides(self, weights: str) -> bool:
        return weights != BUNDLED and (self._folder / BUNDLED).is_file() and not self._stop.is_set()

    def graph(self, weights: str) -> Graph:
        """Raises WeightsError."""
        source = self._folder / weights
        if source.name != weights or source.suffix not in {*CONVERTERS, ".onnx"}:
            raise WeightsError(f"WEIGHTS = {weights!r}: give the name of a .pt or .xml file in {self._folder}/")
        if source.suffix == ".onnx":
            raise WeightsError(
                f"WEIGHTS = {weights!r}: .onnx files cannot be used. Use the .pt file that it was exported from;"
                " YOLOv5's train.py writes it to runs/train/exp*/weights/best.pt."
            )
        try:
            self._folder.mkdir(exist_ok=True)
            if not source.is_file():
                self._download(source)
            return self._converted(source)
        except OSError as error:
            raise WeightsError(
                f"{weights} cannot be read, or its graph not kept, in {self._folder}/: {error}"
            ) from error

    def _download(self, source: Path) -> None:
        """Download an official checkpoint; UnavailableError if that fails."""
        setup = self._setup
        if source.name not in setup.official_sha256:
            known = ", ".join([*setup.official_sha256, BUNDLED])
            raise WeightsError(
                f"{source.name} is not in {source.parent}/. Put it there, or set WEIGHTS to one of: {known}."
            )
        url, sha256 = setup.release_url + source.name, setup.official_sha256[source.name]
        log.info("%s is not in %s/; downloading it once from %s", source.name, source.parent, url)
        command = [sys.executable, "-m", "guardianberry.detection.download_child", url, str(source.absolute())]
        command += [sha256 or "-", str(setup.max_download_bytes), str(setup.silence_limit_s)]
        ended = self._run(command, DOWNLOAD_LIMIT_S, DOWNLOAD_VARIABLES)
        source.with_name(f".{source.name}.part").unlink(missing_ok=True)
        if ended.code != 0 or not source.is_file():
            reason = ended.last_line or ended.how
            if ended.code == -signal.SIGALRM:
                reason = f"no byte came for {setup.silence_limit_s:.0f} s"
            raise UnavailableError(
                f"{source.name} is missing and cannot be downloaded ({reason}). Download {url} on another computer and"
                f" copy it into {source.parent}/."
            )

    def _converted(self, source: Path) -> Graph:
        """The graph of `source`; of an official checkpoint with its adapter, if there is one and it fits."""
        parts = [source, source.with_suffix(".bin")] if source.suffix == ".xml" else [source]
        for part in parts:
            if not part.is_file():
                raise WeightsError(f"{part.name} is missing in {part.parent}/: a graph is two files, .xml and .bin.")
            self._check_size(part)
        if source.name in self._setup.official_sha256:
            _check_official(source, file_sha256(source), self._setup.official_sha256[source.name])
            if adapter_path(source).is_file():
                try:
                    self._check_size(adapter_path(source))
                    return self._cached([source, adapter_path(source)], adapted_name(source))
                except RefusedError as error:
                    log.warning("%s is used without %s: %s", source.name, adapter_path(source).name, error)
        return self._cached(parts, source.name)

    def _check_size(self, part: Path) -> None:
        if (size_bytes := part.stat().st_size) > self._setup.max_download_bytes:  # it would be hashed for hours
            raise RefusedError(f"{part.name} cannot be used: it has {size_bytes} bytes, more than any YOLOv5")

    def _cached(self, parts: list[Path], model_name: str) -> Graph:
        """The cached graph of some files, a checkpoint with its adapter say; converted now where it is not there."""
        sha256 = file_sha256(*parts)
        try:
            return self._kept(parts, sha256, model_name)
        except OSError as error:
            self._conversions.keep_elsewhere(error)
        return self._kept(parts, sha256, model_name)

    def _kept(self, parts: list[Path], sha256: str, model_name: str) -> Graph:
        xml = self._conversions.graph_path(parts[0], sha256)
        if not self._conversions.has(xml):
            self._conversions.check_writable()
            started_s = time.monotonic()
            self._convert(parts, xml, model_name)
            log.info("%s converted in %.1f s, kept as .cache/%s", model_name, time.monotonic() - started_s, xml.name)
        return Graph(xml, model_name)

    def _convert(self, parts: list[Path], xml: Path, model_name: str) -> None:
        """Run the conversion child, unless it is known to fail here; WeightsError if there is no graph afterwards."""
        source, adapters = parts[0], [part for part in parts if part.suffix == ".npz"]
        names = " ".join(f"models/{path.name}" for path in (source, source.with_suffix(".xml"), *adapters))
        advice = (
            f"What to do: on another computer with this program run `env/bin/python -m guardianberry.convert {names}`,"
            f" copy {source.stem}.xml and {source.stem}.bin from its models/ into {source.parent}/ here, and set"
            f" WEIGHTS to {source.stem}.xml."
        )
        if source.name != BUNDLED and (cause := self._conversions.failure(xml)):
            again = f"It is tried again when the weights, the packages or the memory change, or without {RECORD_NAME}."
            raise UnavailableError(f"The conversion of {model_name} {cause}. {again} {advice}")
        log.info("%s is being converted; this is done once", model_name)
        files = [str(path.absolute()) for path in (source, xml, *adapters)]
        ended = self._run([*self._setup.converter, *files], self._setup.conversion_limit_s)
        if ended.code == REFUSED:
            raise RefusedError(f"{source.name} cannot be used: {ended.last_line}")
        if ended.code != 0 or not xml.is_file() or not xml.with_suffix(".bin").is_file():
            cause = ended.how + (f" ({ended.last_line})" if ended.last_line else "")
            if ended.code in LASTING_CODES:
                self._conversions.add_failure(xml, cause)
            raise UnavailableError(f"The conversion of {model_name} {cause}. {advice}")
        self._conversions.add(xml)

    def _run(self, command: Sequence[str], limit_s: float, variables: Sequence[str] = ()) -> child.Ended:
        ended = child.run(command, limit_s=limit_s, stop=self._stop, variables=variables)
        if self._stop.is_set():
            raise WeightsError("The preparation of the weights was stopped.")
        return ended


def _check_official(source: Path, sha256: str, expected: str | None) -> None:
    record = source.with_name(f".{source.name}.sha256")
    if expected is None and record.is_file():
        expected = record.read_text(encoding="ascii", errors="replace").partition(" ")[0].strip()
    if expected is None:
        write_atomically(record, f"{sha256}  {source.name}\n".encode())
        log.info("%s: sha256 %s recorded in %s and required from now on", source.name, sha256, record.name)
    elif sha256 != expected:
        raise WeightsError(
            f"{source} is refused: its sha256 is {sha256}, the official file's is {expected}. Delete it (it is then"
            " downloaded again), or give weights of your own another name and set WEIGHTS to that."
        )
