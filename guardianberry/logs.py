"""Log lines for people and for the journal: no line can look like another entry, and no fault is logged twice."""

import contextlib
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any

_MAX_CAUSES = 1000
_MAX_FILES = 100
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_MORE = "    | "  # begins each further line of an entry
# systemd's journal reads the priority of a line from its beginning (sd-daemon(3)).
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))


class OncePerCause:
    """Tells whether a fault has been logged already, so that one that lasts for days is one line. For any thread.

    A cause is whatever tells the faults apart: a word, or a tuple. The last 1,000 are remembered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._repeats: dict[Hashable, int] = {}

    def is_new(self, cause: Hashable) -> bool:
        """True at the first call with this cause, and at the first one after `forget`."""
        with self._lock:
            self._repeats[cause] = self._repeats.get(cause, -1) + 1
            if len(self._repeats) > _MAX_CAUSES:
                del self._repeats[next(iter(self._repeats))]
            return self._repeats.get(cause) == 0

    def forget(self, is_over: Callable[[Any], bool] = lambda cause: True) -> int:
        """Forget the causes that are over (by default all); returns how many repetitions of them were not logged."""
        with self._lock:
            return sum(self._repeats.pop(cause) for cause in [cause for cause in self._repeats if is_over(cause)])


class FirstOnes:
    """Warnings about files, of which a card from elsewhere can hold millions: the first 100 are logged."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger, self._count = logger, 0

    def warning(self, text: str, *arguments: object) -> None:
        self._count += 1
        if self._count <= _MAX_FILES:
            self._logger.warning(text, *arguments)
        elif self._count == _MAX_FILES + 1:
            self._logger.warning("there are more such files than the %d above; they are not named", _MAX_FILES)


def without_control(text: str) -> str:
    """Control characters, those of escape sequences too, as backslash escapes. Tabs and line ends stay."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class LineFormatter(logging.Formatter):
    """Time, level, message. Control characters are escaped, so no text can look like another entry."""

    layout = "%(asctime)s %(levelname)-7s %(message)s"

    def __init__(self) -> None:
        super().__init__(self.layout)

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        return "\n".join((_MORE if more else "") + without_control(line) for more, line in enumerate(lines))


class JournalFormatter(LineFormatter):
    """For the journal, which adds the time itself: priority and message."""

    layout = "%(message)s"

    def format(self, record: logging.LogRecord) -> str:
        number = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{number}>{line}" for line in super().format(record).split("\n"))


class Handler(logging.Handler):
    """Writes to `descriptor` (stderr) and never waits: a line that a full pipe or a broken disk refuses is lost."""

    def __init__(self, descriptor: int = 2) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.setFormatter(formatter(descriptor))
        with contextlib.suppress(OSError):  # closed
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.set_blocking(descriptor, False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self._descriptor, f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except OSError:
            pass
        except Exception:  # noqa: BLE001 (as logging's own handlers: a wrong log call must not end the daemon)
            self.handleError(record)


def formatter(descriptor: int = 2, environment: Mapping[str, str] = os.environ) -> logging.Formatter:
    """For the place that `descriptor` (stderr) leads to: the journal's socket, which systemd names, or another."""
    with contextlib.suppress(OSError):  # closed
        status = os.fstat(descriptor)
        if environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":  # children inherit it
            return JournalFormatter()
    return LineFormatter()
