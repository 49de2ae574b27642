"""Download one file: over HTTPS, bounded in size and time, checked, and renamed into place when it is complete.

Imported only when something is missing: urllib costs 0.05 s on a PC and several times that on a Pi.
"""

from __future__ import annotations

import http.client
import os
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from guardianberry.detection.openvino_model import file_sha256

TOTAL_LIMIT_S = 900.0
CHUNK_BYTES = 1 << 16
POLL_S = 0.2  # how soon a stop is noticed


class FetchError(Exception):
    """The file did not come, or what came is not it. Nothing was left behind."""


def fetch(
    url: str, target: Path, *, sha256: str | None, stop: threading.Event, max_bytes: int, silence_limit_s: float
) -> None:
    """Put the file at `url` to `target`; `sha256` None skips that check. Raises FetchError, also when `stop` is set.

    Gives up after `silence_limit_s` without a byte.
    """
    download = _Download(url, target, sha256, max_bytes, silence_limit_s)
    started_s = time.monotonic()
    download.start()
    while download.is_alive():
        now_s = time.monotonic()
        if stop.is_set() or now_s - download.last_byte_s > silence_limit_s or now_s - started_s > TOTAL_LIMIT_S:
            download.given_up = True
            raise FetchError("stopped" if stop.is_set() else f"gave up after {now_s - started_s:.0f} s")
        download.join(POLL_S)
    if download.error:
        raise FetchError(download.error)


class _StayEncrypted(urllib.request.HTTPRedirectHandler):
    """Follows redirects, which GitHub needs, but not from https to anything else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme != urlsplit(req.full_url).scheme:
            raise OSError(f"redirected to {newurl}: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Download(threading.Thread):
    """A thread, because name look-ups obey no time-out; given up on, it ends some time later and leaves no trace."""

    def __init__(self, url: str, target: Path, sha256: str | None, max_bytes: int, silence_limit_s: float) -> None:
        super().__init__(name="download", daemon=True)
        self._url, self._target, self._sha256 = url, target, sha256
        self._max_bytes, self._silence_limit_s = max_bytes, silence_limit_s
        self.last_byte_s = time.monotonic()
        self.given_up = False
        self.error = ""

    def run(self) -> None:
        part = self._target.with_name(f".{self._target.name}.part")
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                self._receive(file)
                file.flush()
                os.fsync(file.fileno())
            if self._sha256 and (found := file_sha256(part)) != self._sha256:
                self.error = f"what came has sha256 {found}, expected {self._sha256}"
            elif not self.given_up:
                part.replace(self._target)
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            self.error = str(error) or type(error).__name__
        finally:
            part.unlink(missing_ok=True)

    def _receive(self, file: BinaryIO) -> None:
        request = urllib.request.Request(self._url, headers={"User-Agent": "guardianberry"})
        with urllib.request.build_opener(_StayEncrypted).open(request, timeout=self._silence_limit_s) as response:
            received_bytes = 0
            while not self.given_up and (chunk := response.read1(CHUNK_BYTES)):
                self.last_byte_s = time.monotonic()
                received_bytes += len(chunk)
                if received_bytes > self._max_bytes:
                    raise OSError(f"more than {self._max_bytes} bytes came")
                file.write(chunk)
            promised_bytes = int(response.headers.get("Content-Length") or received_bytes)
        if received_bytes != promised_bytes:
            raise OSError(f"the connection ended after {received_bytes} of {promised_bytes} bytes")
