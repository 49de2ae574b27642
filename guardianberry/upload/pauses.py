"""When uploads wait: while a more urgent one is under way, so that it has the uplink for itself, and after failures."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from guardianberry.upload.errors import Interrupted

# While a gate is closed, other uploads send one block in this time: often enough that no server hangs up.
_PAUSED_BLOCK_S = 8.0
_FIRST_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 300.0  # a network that is back is noticed after this time at most


class Gate:
    """Closed during urgent uploads, for those that wait at it and at the gates whose `above` it is. For any thread."""

    def __init__(self, above: Gate | None = None) -> None:
        self._above = above
        self._changed = threading.Condition()
        self._urgent = 0  # uploads under way
        self._stopping = False

    @property
    def is_closed(self) -> bool:
        return self._urgent > 0

    @contextmanager
    def closed(self) -> Iterator[None]:
        """For one urgent upload; several may be under way."""
        with self._changed:
            self._urgent += 1
        try:
            yield
        finally:
            with self._changed:
                self._urgent -= 1
                self._changed.notify_all()

    def wait(self) -> None:
        """Returns when it is open, after `_PAUSED_BLOCK_S` at the latest. Raises Interrupted after `stop`."""
        if self._above:
            self._above.wait()
        with self._changed:
            self._changed.wait_for(lambda: self._urgent == 0 or self._stopping, _PAUSED_BLOCK_S)
            if self._stopping:
                raise Interrupted

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()


def backoff_s(uniform: Callable[[float, float], float] = random.uniform) -> Iterator[float]:
    """Pauses that grow from one second to five minutes, each with a jitter, so that many cameras do not try at once."""
    pause_s = _FIRST_BACKOFF_S
    while True:
        yield pause_s * uniform(0.5, 1.0)
        pause_s = min(_MAX_BACKOFF_S, 2 * pause_s)
