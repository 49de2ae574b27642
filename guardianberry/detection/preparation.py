"""The weights are prepared beside the running daemon, which starts with the bundled model."""

import logging
import threading
from pathlib import Path

from guardianberry.detection.weights import BUNDLED, Graph, RefusedError, Search, Setup, UnavailableError, WeightsError

log = logging.getLogger(__name__)

PATIENCE_S = 3.0  # a conversion takes 3 s on a PC; while one takes longer, the bundled model is used


class Preparation:
    """find_graph beside the running daemon: the bundled model is used until the weights that were asked for are ready.

    Methods are for one thread; the search has a thread of its own, which ends soon after `stop` is set.
    """

    def __init__(self, weights: str, models_folder: Path, *, stop: threading.Event, setup: Setup | None = None) -> None:
        self._weights, self._search = weights, Search(models_folder, stop, setup)
        self._graph: Graph | None = None
        self._error: WeightsError | None = None
        self._is_awaited = False
        self._thread = threading.Thread(target=self._run, name="weights", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._graph = self._search.graph(self._weights)
        except WeightsError as error:
            self._error = error
        except Exception as error:  # the thread's outermost frame
            log.exception("The search for %s failed", self._weights)
            self._error = UnavailableError(f"{self._weights} cannot be prepared ({type(error).__name__}).")

    def first_graph(self, patience_s: float = PATIENCE_S) -> Graph:
        """The graph to start with. Waits longer than `patience_s` only without a bundled model; raises WeightsError."""
        has_bundled = self._search.has_bundled_besides(self._weights)
        self._thread.join(patience_s if has_bundled else None)
        self._is_awaited = self._thread.is_alive()
        if self._graph:
            return self._graph
        if self._is_awaited:
            log.info("%s is not ready yet; the bundled %s is used until then", self._weights, BUNDLED)
        elif self._error and not (has_bundled and isinstance(self._error, UnavailableError | RefusedError)):
            raise self._error
        else:
            self._log_error()
        return self._search.graph(BUNDLED)

    def later_graph(self) -> Graph | None:
        """The graph that was asked for, once, when it has become ready after `first_graph`. Never waits."""
        if not self._is_awaited or self._thread.is_alive():
            return None
        self._is_awaited = False
        if self._error:
            self._log_error()
        return self._graph

    def _log_error(self) -> None:
        level = logging.WARNING if isinstance(self._error, UnavailableError) else logging.ERROR
        log.log(level, "%s Until the next start the bundled %s is used", self._error, BUNDLED)
