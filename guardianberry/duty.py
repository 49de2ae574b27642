"""Whether the camera is on duty now: ARMED_HOURS, and the file `disarmed` in the program's folder."""

import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from guardianberry.armed import ArmedHours

log = logging.getLogger(__name__)

FILE_NAME = "disarmed"
_FILE_ENDS_AFTER_S = 12 * 3600.0
_EVERY_S = 1.0
_STALE_AFTER_S = 30.0  # a disk that has not answered for so long hangs, and then the file does not count


class Duty:
    """On duty whenever in doubt: the clock has never been set, the disk hangs, the file is not the owner's.

    The file is looked at in a thread of its own, because its disk may hang. Everything else is for the loop.
    """

    def __init__(
        self,
        folder: Path,
        hours: ArmedHours,
        *,
        is_synchronised: Callable[[], bool],
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._hours = folder / FILE_NAME, hours
        self._is_synchronised = is_synchronised
        self._wall, self._monotonic = wall, monotonic
        self._clock_was_set = False
        self._file_reason = ""
        self._file_checked_s = monotonic()
        self._file_seen: tuple[tuple[int, int], float] | None = None  # which file, since when
        self._remark = ""
        self.off_reason = ""  # what the loop was told last; "" on duty. For any thread to read
        self.asked_s = monotonic()  # when the loop asked last
        self._checked, self._closed = threading.Event(), threading.Event()

    def start(self) -> None:
        """Waits for the first look at the file, a second at most, so that a restart off duty films nothing."""
        threading.Thread(target=self._run, name="duty", daemon=True).start()
        self._checked.wait(_EVERY_S)

    def stop(self) -> None:
        self._closed.set()

    def is_armed(self) -> bool:
        """Whether to film now. A change is logged."""
        self.asked_s = self._monotonic()
        reason = self._why_off()
        if reason != self.off_reason:
            log.info("off duty: %s; nothing is filmed" if reason else "on duty%s", reason)
            self.off_reason = reason
        return not reason

    def check_file(self) -> None:
        """And the clock. Once a second, in the thread. Blocks as long as the disk does."""
        self._clock_was_set = self._clock_was_set or self._is_synchronised()
        try:
            self._file_reason, remark = self._judge(os.lstat(self._path))
        except FileNotFoundError:
            self._file_reason = remark = ""
        except OSError as error:
            self._file_reason, remark = "", f"it cannot be read ({error.strerror})"
        self._file_checked_s = self._monotonic()
        if remark and remark != self._remark:
            log.warning("the file %s does not count: %s", FILE_NAME, remark)
        self._remark = remark

    def _run(self) -> None:
        while True:
            try:
                self.check_file()
            except Exception:
                log.exception("the file %s does not count", FILE_NAME)
                return
            self._checked.set()
            if self._closed.wait(_EVERY_S):
                return

    def _why_off(self) -> str:
        """Why nothing is filmed now; "" on duty."""
        if not self._clock_was_set:
            return ""
        if self._file_reason and self._monotonic() - self._file_checked_s < _STALE_AFTER_S:
            return self._file_reason
        now_local = datetime.fromtimestamp(self._wall(), UTC).astimezone()
        return "" if self._hours.is_armed(now_local) else "not within ARMED_HOURS"

    def _judge(self, status: os.stat_result) -> tuple[str, str]:
        """(Why the file ends the duty, ""), or ("", why it does not count)."""
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            return "", "it is a link, or no ordinary file"
        if status.st_uid not in (0, os.geteuid()):
            return "", f"it belongs to user id {status.st_uid}"
        if status.st_mode & stat.S_IWOTH:
            return "", "other users can write to it, and so make it new again and again"
        age_s, now_s = self._wall() - status.st_mtime, self._monotonic()
        file = status.st_ino, status.st_mtime_ns
        if self._file_seen is None or self._file_seen[0] != file:
            self._file_seen = file, now_s
        if age_s < 0:
            return "", "it is dated in the future"
        # By the monotonic clock as well: whoever can set the wall clock back must not end the guard for longer.
        if max(age_s, now_s - self._file_seen[1]) >= _FILE_ENDS_AFTER_S:
            return "", "it is older than 12 hours, so the camera is on duty again; remove it"
        end = datetime.fromtimestamp(status.st_mtime + _FILE_ENDS_AFTER_S, UTC).astimezone()
        return f"the file {FILE_NAME}, until {end:%H:%M} at the latest", ""
