"""When an event starts and when it ends: the pure state machine.

Inferences go in, actions come out. No I/O, no clock, no threads. All times are monotonic seconds.

    IDLE --- enough inferences with a person, gap since the last start over ---> RECORDING   (Start)
    IDLE --- the same within the gap, by somebody who came into an empty scene ---> IDLE     (Alert)
    RECORDING --- person gone (`step`) | clip full, camera lost, shutdown (`end`) ---> IDLE   (Stop)
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MISSES_FORGIVEN = 1  # inferences without a person among those that start an event
_ALERT_GAP_S = 10.0  # between alerts within the gap: people who come and go are not a flood
_MIN_WINDOW_S = 5.0  # an older detection starts no event: its frame is too old for an alert


@dataclass(frozen=True)
class Inference:
    """One run of the detector on a new frame.

    `time_s` is the arrival of the frame's last byte, `confidences` one score (0 to 1) for each person found,
    `inference_ms` the detector's time. `frame` and `people` are for the alert image; nothing here reads them.
    """

    time_s: float
    confidences: Sequence[float]
    inference_ms: float = 0.0
    frame: Any = None
    people: Any = None


@dataclass(frozen=True)
class Start:
    """Make an alert image of `first`, and record a clip that begins with the pre-roll."""

    first: Inference


@dataclass(frozen=True)
class Alert:
    """Make an alert image of `first`, without a clip: the gap between clips is not over."""

    first: Inference


@dataclass(frozen=True)
class EventFacts:
    """The event so far: most people in a frame, highest score in per cent, median inference time."""

    max_people_found: int
    max_confidence: int
    inference_time_ms: int


@dataclass(frozen=True)
class Stop:
    """Finish the clip with the last frame that arrived up to `time_s`."""

    time_s: float
    reason: str
    facts: EventFacts


class Recorder:
    """Starts and ends events. Inferences come in the order of their time.

    An event starts when `detections_to_start` of the last `detections_to_start` + 1 inferences found a person, so that
    one false detection starts none. `person_gone_after_s` = 0 ends the event at the first one without a person.
    Within the gap somebody new, who comes into a scene that was empty for `person_gone_after_s`, is told by an image
    alone. The length of the clip is not decided here: `ClipWriter` ends it, and the loop then calls `end`.
    """

    def __init__(
        self,
        *,
        min_gap_between_video_start_s: float,
        person_gone_after_s: float,
        detections_to_start: int,
    ) -> None:
        self._min_gap_s, self._person_gone_after_s = min_gap_between_video_start_s, person_gone_after_s
        self._detections_to_start = detections_to_start
        self._window_size = detections_to_start + _MISSES_FORGIVEN
        self._window: deque[Inference] = deque(maxlen=self._window_size)
        self._event: list[Inference] = []  # of the current event, without frames; empty when idle
        self._last_start_s: float | None = None
        self._last_alert_s = -math.inf
        self._last_person_s = -math.inf
        self._is_empty = True  # nobody for `person_gone_after_s`
        self._came_in = False  # into an empty scene, and not told yet

    @property
    def recording(self) -> bool:
        return bool(self._event)

    @property
    def attentive(self) -> bool:
        """A person is recorded, or one of the last inferences found one: check every frame."""
        return self.recording or any(seen.confidences for seen in self._window)

    def facts(self) -> EventFacts:
        """Of the current event. Raises ValueError when there is none."""
        return EventFacts(
            max_people_found=max(len(seen.confidences) for seen in self._event),
            max_confidence=round(100 * max(max(seen.confidences, default=0) for seen in self._event)),
            inference_time_ms=round(statistics.median(seen.inference_ms for seen in self._event)),
        )

    def step(self, inference: Inference) -> Start | Alert | Stop | None:
        """The action that follows from this inference, if any."""
        slowest_ms = max(seen.inference_ms for seen in (*self._window, inference))
        # Where an inference takes longer than a second or two, the window must last for as many of them as it holds.
        window_s = max(_MIN_WINDOW_S, self._window_size * slowest_ms / 1000)
        while self._window and inference.time_s - self._window[0].time_s > window_s:
            self._window.popleft()
        self._window.append(inference)
        self._follow_scene(inference)
        if self.recording:
            return self._go_on(inference)
        return self._start_if_sure(inference)

    def end(self, now_s: float, reason: str) -> Stop | None:
        """End the current event, if any. Detections from before do not count towards a later event."""
        self._window.clear()
        return self._stop(now_s, reason) if self.recording else None

    def _follow_scene(self, inference: Inference) -> None:
        if inference.confidences:
            self._came_in = self._came_in or self._is_empty
            self._is_empty = False
            self._last_person_s = inference.time_s
        elif inference.time_s - self._last_person_s >= self._person_gone_after_s:
            self._is_empty, self._came_in = True, False

    def _start_if_sure(self, inference: Inference) -> Start | Alert | None:
        with_person = [seen for seen in self._window if seen.confidences]
        if not inference.confidences or len(with_person) < self._detections_to_start:
            return None
        if self._last_start_s is not None and inference.time_s - self._last_start_s < self._min_gap_s:
            if not self._came_in or inference.time_s - self._last_alert_s < _ALERT_GAP_S:
                return None
            self._last_alert_s, self._came_in = inference.time_s, False
            return Alert(first=with_person[0])
        self._last_start_s = self._last_alert_s = inference.time_s
        self._came_in = False
        self._event = [_without_frame(seen) for seen in with_person]
        return Start(first=with_person[0])

    def _go_on(self, inference: Inference) -> Stop | None:
        self._event.append(_without_frame(inference))
        self._came_in = False  # the clip shows whoever comes
        return self._stop(inference.time_s, "the person is gone") if self._is_empty else None

    def _stop(self, now_s: float, reason: str) -> Stop:
        stop = Stop(time_s=now_s, reason=reason, facts=self.facts())
        self._event = []
        return stop


def _without_frame(inference: Inference) -> Inference:
    """The frames of a whole event would take hundreds of megabytes."""
    return Inference(inference.time_s, tuple(inference.confidences), inference.inference_ms)
