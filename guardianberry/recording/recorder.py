"""When an event starts and when it ends: the pure state machine.

Looks and times go in, actions come out. No I/O, no clock, no threads. All times are monotonic seconds.

    IDLE --- enough looks with a person, gap since the last start over ---> RECORDING   (Start)
    RECORDING --- clip is full | person gone | camera lost | shutdown ----> IDLE        (Stop)
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_WINDOW_MAX_AGE_S = 5.0  # a sighting older than this is another story, and its picture no alert any more


@dataclass(frozen=True)
class Inference:
    """One distinct frame that the detector has seen.

    `time_s` is the arrival of the frame's last byte, `confidences` one score (0 to 1) a person found, `inference_ms`
    the detector's time for it. `frame` and `people` are carried along for the alert image and never looked into.
    """

    time_s: float
    confidences: Sequence[float]
    inference_ms: float = 0.0
    frame: Any = None
    people: Any = None


@dataclass(frozen=True)
class Start:
    """Save `first` as the alert image, then record a clip from the pre-roll on."""

    first: Inference


@dataclass(frozen=True)
class EventFacts:
    """What is known of the event so far: people and score (per cent) at their highest, median inference time."""

    max_people_found: int
    max_confidence: int
    inference_time_ms: int


@dataclass(frozen=True)
class Stop:
    """Finish the clip with the video that has arrived up to `time_s`."""

    time_s: float
    reason: str
    facts: EventFacts


class Recorder:
    """Decides over events from looks in the order of their time.

    `detections_to_start` of the last `detection_window_looks` looks must hold a person before an event starts, so that
    one false detection starts nothing. `person_gone_after_s` = 0 ends the clip at the first look without a person.
    """

    def __init__(
        self,
        *,
        max_recording_duration_s: float,
        min_gap_between_video_start_s: float,
        person_gone_after_s: float,
        detections_to_start: int,
        detection_window_looks: int,
    ) -> None:
        self._max_recording_duration_s = max_recording_duration_s
        self._min_gap_s = min_gap_between_video_start_s
        self._person_gone_after_s = person_gone_after_s
        self._detections_to_start = detections_to_start
        self._window: deque[Inference] = deque(maxlen=detection_window_looks)
        self._event: list[Inference] = []  # looks of the event under way with their pictures dropped; empty when idle
        self._clip_start_s = 0.0
        self._last_start_s: float | None = None
        self._last_person_s = 0.0

    @property
    def recording(self) -> bool:
        return bool(self._event)

    @property
    def suspects(self) -> bool:
        """A person was in one of the last looks and no event is under way yet: look closely."""
        return not self.recording and any(seen.confidences for seen in self._window)

    def facts(self) -> EventFacts:
        """Of the event under way; raises ValueError when there is none."""
        return EventFacts(
            max_people_found=max(len(seen.confidences) for seen in self._event),
            max_confidence=round(100 * max(max(seen.confidences, default=0) for seen in self._event)),
            inference_time_ms=round(statistics.median(seen.inference_ms for seen in self._event)),
        )

    def step(self, inference: Inference, *, clip_start_s: float) -> Start | Stop | None:
        """Decide on a new inference. A clip that starts now begins with the video of `clip_start_s` (its pre-roll)."""
        while self._window and inference.time_s - self._window[0].time_s > _WINDOW_MAX_AGE_S:
            self._window.popleft()
        self._window.append(inference)
        if self.recording:
            return self._go_on(inference)
        return self._start_if_sure(inference, clip_start_s)

    def end(self, now_s: float, reason: str) -> Stop | None:
        """The camera is gone or the daemon ends: what has been seen must not count towards a later event."""
        self._window.clear()
        return self._stop(now_s, reason) if self.recording else None

    def _start_if_sure(self, inference: Inference, clip_start_s: float) -> Start | None:
        sightings = [seen for seen in self._window if seen.confidences]
        if not inference.confidences or len(sightings) < self._detections_to_start:
            return None
        if self._last_start_s is not None and inference.time_s - self._last_start_s < self._min_gap_s:
            return None
        self._last_start_s = self._last_person_s = inference.time_s
        self._clip_start_s = min(clip_start_s, inference.time_s)
        self._event = [_without_picture(seen) for seen in sightings]
        return Start(first=sightings[0])

    def _go_on(self, inference: Inference) -> Stop | None:
        self._event.append(_without_picture(inference))
        if inference.confidences:
            self._last_person_s = inference.time_s
        if inference.time_s - self._clip_start_s >= self._max_recording_duration_s:
            return self._stop(inference.time_s, "the clip has its full length")
        if not inference.confidences and inference.time_s - self._last_person_s >= self._person_gone_after_s:
            return self._stop(inference.time_s, "the person is gone")
        return None

    def _stop(self, now_s: float, reason: str) -> Stop:
        stop = Stop(time_s=now_s, reason=reason, facts=self.facts())
        self._event = []
        return stop


def _without_picture(inference: Inference) -> Inference:
    """Twenty seconds of frames would be hundreds of megabytes."""
    return Inference(inference.time_s, tuple(inference.confidences), inference.inference_ms)
