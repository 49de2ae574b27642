"""The download child: fetches one file over HTTPS, checks it, and renames it into place when it is complete.

    python -m guardianberry.detection.download_child URL TARGET SHA256|- MAX_BYTES SILENCE_LIMIT_S

It is a separate process because name look-ups have no timeout: SIGALRM ends it after SILENCE_LIMIT_S without a byte,
and its parent may kill it at any time. Exit code 0: TARGET is complete. Otherwise the last line on stderr says why.
"""

import signal
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from guardianberry.detection.child import restrict
from guardianberry.detection.openvino_model import file_sha256
from guardianberry.disk import create, fsync_path

CHUNK_BYTES = 1 << 16


class _StayEncrypted(urllib.request.HTTPRedirectHandler):
    """Follows redirects, which GitHub needs, but only to the same scheme."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme != urlsplit(req.full_url).scheme:
            raise OSError(f"redirected to {newurl}: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, target: Path, sha256: str, max_bytes: int, silence_limit_s: float) -> None:
    """Put the file at `url` to `target`, mode 0600; `sha256` "-": any whole zip will do. Raises what urllib raises."""
    part = target.with_name(f".{target.name}.part")  # the parent deletes it if this process is killed
    with open(create(part), "wb") as file:
        _receive(url, file, max_bytes, silence_limit_s)
    if sha256 == "-":
        with zipfile.ZipFile(part) as archive:
            archive.testzip()  # raises BadZipFile where the file is damaged
    elif (found := file_sha256(part)) != sha256:
        raise OSError(f"what came has sha256 {found}, expected {sha256}")
    fsync_path(part)
    part.replace(target)
    fsync_path(target.parent)


def _receive(url: str, file: BinaryIO, max_bytes: int, silence_limit_s: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, silence_limit_s)
    request = urllib.request.Request(url, headers={"User-Agent": "guardianberry"})
    with urllib.request.build_opener(_StayEncrypted).open(request) as response:
        received_bytes = 0
        while chunk := response.read1(CHUNK_BYTES):
            signal.setitimer(signal.ITIMER_REAL, silence_limit_s)
            received_bytes += len(chunk)
            if received_bytes > max_bytes:
                raise OSError(f"more than {max_bytes} bytes came")
            file.write(chunk)
        promised_bytes = response.headers.get_all("Content-Length", [])
    signal.setitimer(signal.ITIMER_REAL, 0)
    if any(promised != str(received_bytes) for promised in promised_bytes):
        raise OSError(f"the connection ended after {received_bytes} of {promised_bytes[0]:.20} bytes")


def main(url: str, target: str, sha256: str, max_bytes: str, silence_limit_s: str) -> int:
    restrict()
    try:
        fetch(url, Path(target), sha256, int(max_bytes), float(silence_limit_s))
    except Exception as error:  # noqa: BLE001 - the process's outermost frame
        sys.stderr.write(f"{error or type(error).__name__}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
