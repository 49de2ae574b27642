"""Makes the files of events, the alert image and the clip, and tells the uploader about them.

All methods are for the loop and touch no disk: each of the two folders has a thread for that, and so has each clip.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from guardianberry.disk import write_atomically
from guardianberry.filenames import BestName, ImageName, VideoName
from guardianberry.recording.alert_images import Alert, AlertImages
from guardianberry.recording.clip import ClipWriter
from guardianberry.recording.clock import Clock
from guardianberry.recording.folder_thread import FolderThread
from guardianberry.recording.recorder import EventFacts, Inference, Stop
from guardianberry.recording.recovery import Recovery
from guardianberry.recording.retention import Reserve, Retention
from guardianberry.recording.snapshot import Views, alert_jpeg

if TYPE_CHECKING:
    from guardianberry.camera.ring import Tap
    from guardianberry.upload.live import LiveLane
    from guardianberry.upload.uploader import Uploader

log = logging.getLogger(__name__)

_MAX_CLIPS = 3  # at a time: more only where the disk hangs, and each keeps up to 20 s of video in memory
_MAX_BEST = 3  # pictures in memory, where the disk hangs
_MAX_SILENCE_S = 5.0  # then the event is logged, with or without its files


class EventFiles:
    """Makes `folder`/images and `folder`/videos, and the files of one event after the other in them.

    A file that cannot be written is a warning in the log, never an exception.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        uploader: Uploader,
        min_free_disk_bytes: int,
        max_recording_duration_s: float,
        frame_rate_fps: float,
        live: LiveLane | None = None,
    ) -> None:
        images, videos = folder / "images", folder / "videos"
        self._clock, self._uploader, self._live = clock, uploader, live
        self._max_recording_duration_s, self._frame_rate_fps = max_recording_duration_s, frame_rate_fps
        reserve = Reserve(folder, images, min_free_bytes=min_free_disk_bytes)
        self._images = AlertImages(images, clock=clock, uploader=uploader, reserve=reserve)
        self._recovery = Recovery(
            videos,
            max_duration_s=max_recording_duration_s,
            frame_rate_fps=frame_rate_fps,
            is_recording=lambda event_id: any(clip.event_id == event_id for clip in self._unfinished()),
            finished=lambda path: uploader.sweep_soon(),
        )
        retention = Retention(videos, min_free_bytes=min_free_disk_bytes, is_uploading=uploader.is_uploading)
        self._videos = FolderThread(
            videos,
            (self._save_best, self._finish_open_clips, retention.make_room, self._release_held_clips),
            on_disk=self._recovery.look,
            consequence="no clips are recorded, but alerts are uploaded,",
        )
        self._clip: ClipWriter | None = None  # of the current event
        self._clips: list[ClipWriter] = []  # with the stopped ones that are not finished
        self._no_clip_reason: str | None = None
        self._is_guarding = False
        self._line: _EventLine | None = None
        self._event: Alert | None = None  # of the current event
        self._views = Views()
        self._best: deque[tuple[Alert, Inference]] = deque(maxlen=_MAX_BEST)  # not written yet
        self.started = 0

    def begin(self) -> None:
        """Start the threads of the folders. Call once, before the first event."""
        self._images.folder.start()
        self._videos.start()

    @property
    def clip_end_reason(self) -> str | None:
        """Why the current event's clip takes no more video; None while it does, and without an event."""
        return self._clip.end_reason if self._clip is not None else self._no_clip_reason

    def start(self, first: Inference, tap: Tap, facts: EventFacts) -> None:
        """Upload and save the alert image of `first`, begin the clip. Logged once a kill takes neither."""
        alert = self._make_alert(first)
        self._event, self._views = alert, Views()
        self._views.add(first)
        self._line = line = _EventLine(alert, len(first.confidences))
        self._clips = self._unfinished()
        if len(self._clips) >= _MAX_CLIPS:
            self._no_clip_reason = "the disk has not taken the clips before"
            tap.close()
            return
        is_held = alert.is_held  # asked before the name: released meanwhile, the alert has its true one
        image, known = alert.name, dataclasses.asdict(facts)
        try:
            self._clip = ClipWriter(
                tap,
                self._videos.path,
                name=VideoName(image.recording_start_time, 0, **known, width=image.width, height=image.height),
                final_name=lambda name: self._clock.hold(name, alert.time_s) if is_held else name.encode(),
                max_duration_s=self._max_recording_duration_s,
                frame_rate_fps=self._frame_rate_fps,
                is_ready=self._videos.is_ready,
                alert_is_safe=alert.is_safe,
                begun=lambda is_begun: line.write("begun" if is_begun else "NOT BEGUN"),
                finished=self._clip_finished,
                left=self._recovery.add,
                failed=self._videos.report,
                begin_live=None
                if is_held or self._live is None
                else partial(self._live.begin, image.recording_start_time, picture=self._views.newest_jpeg),
            )
        except RuntimeError:  # other users' processes can take all threads of the system for a while
            self._no_clip_reason = "the system has no thread left"
            tap.close()
            return
        self._clips.append(self._clip)

    def alert(self, seen: Inference, *, view_lost: str = "") -> None:
        """Upload and save an image without a clip: of somebody new within the gap, or of a view that was lost.

        `view_lost` says why the camera does not see its scene any more. Such an image has the confidence 0.
        """
        alert = self._make_alert(seen, shows_a_person=not view_lost)
        if view_lost:
            log.warning("the view is lost, %s: alert image %s", view_lost, alert.name.encode())
        else:
            self._line = _EventLine(alert, len(seen.confidences), has_clip=False)

    def _make_alert(self, seen: Inference, *, shows_a_person: bool = True) -> Alert:
        is_held = not self._clock.is_set()  # before the event id: the clock may be set in between
        event_id = self._clock.new_event_id(seen.time_s)
        bgr = seen.frame.bgr
        height_px, width_px = bgr.shape[:2]
        confidence = max(1, round(100 * max(seen.confidences, default=0))) if shows_a_person else 0
        name = ImageName(event_id, confidence, width_px, height_px)
        jpeg = alert_jpeg(bgr, seen.people if shows_a_person else [])
        alert = Alert(name, jpeg, seen.time_s, is_held)
        self._images.add(alert)
        self.started += shows_a_person
        return alert

    def note(self, facts: EventFacts, seen: Inference) -> None:
        """Update what is known of the event in the name of its clip, and its best picture."""
        self._views.add(seen)
        if self._clip is not None:
            self._clip.update(facts)

    def stop(self, stop: Stop) -> None:
        """End the current clip. Its thread finishes the file and tells the uploader."""
        log.info("recording stopped: %s", stop.reason)
        if self._clip is not None:
            self._clip.finish(stop)
        self._clip = self._no_clip_reason = None
        if self._event is not None and (best := self._views.best):
            self._best.append((self._event, best))
            self._videos.wake()
        self._event = None

    def check(self) -> None:
        """Log disks that hang, and an event whose files take long. Call it often, once the camera is started."""
        if not self._is_guarding:
            self._is_guarding = True
            self._videos.wake()
        self._images.folder.check()
        self._videos.check()
        if self._line is not None and self._line.is_due():
            self._line.write("NOT BEGUN" if self._line.has_clip else "none within the gap")
            self._line = None

    def close(self, timeout_s: float) -> None:
        """Wait until the images are saved and the stopped clips finished, at most `timeout_s` in all."""
        give_up_s = time.monotonic() + timeout_s
        for clip in self._clips:
            if not clip.join(max(0.0, give_up_s - time.monotonic())):
                log.warning("clip: the disk is slow; the next start finishes what is still open")
        self._images.close(max(0.1, give_up_s - time.monotonic()))
        self._videos.close(max(0.1, give_up_s - time.monotonic()))

    def _unfinished(self) -> list[ClipWriter]:
        return [clip for clip in list(self._clips) if not clip.join(0)]

    def _save_best(self) -> None:
        """Write the best pictures of the events that ended. Raises OSError; they are then tried again."""
        while self._best:
            event, best = first = self._best[0]
            confidence = round(100 * max(best.confidences))
            name = BestName(event.name.recording_start_time, confidence, event.name.width, event.name.height)
            file_name = self._clock.hold(name, event.time_s) if event.is_held else name.encode()
            write_atomically(self._videos.path / file_name, alert_jpeg(best.frame.bgr, best.people))
            if self._best[0] is first:  # else it has made place for a newer one meanwhile
                self._best.popleft()
            self._uploader.sweep_soon()

    def _clip_finished(self, path: Path) -> None:
        log.info("clip finished: %s", path.name)
        self._uploader.sweep_soon()
        self._videos.wake()  # held ones are renamed there

    def _finish_open_clips(self) -> None:
        if self._is_guarding:  # until then the start of the camera gets the CPU and the disk
            self._recovery.finish()

    def _release_held_clips(self) -> None:
        if self._clock.is_set() and self._clock.release_held(self._videos.path):
            self._uploader.sweep_soon()


@dataclasses.dataclass
class _EventLine:
    """The line of an event in the log, written once, by whichever thread comes first."""

    alert: Alert
    people: int
    has_clip: bool = True
    made_s: float = dataclasses.field(default_factory=time.monotonic)
    is_unwritten: threading.Lock = dataclasses.field(default_factory=threading.Lock)  # and never released

    def is_due(self) -> bool:
        """Whether to write it without waiting any longer for the clip, which otherwise is the one to begin it."""
        is_safe = self.alert.is_safe.is_set() and not self.has_clip
        return is_safe or time.monotonic() - self.made_s > _MAX_SILENCE_S

    def write(self, clip: str) -> None:
        if not self.is_unwritten.acquire(blocking=False):
            return
        image = self.alert.name
        log.info(
            "event %d: %d person(s), %d %%; alert image %s, clip %s",
            image.recording_start_time,
            self.people,
            image.confidence,
            image.encode() if self.alert.is_safe.is_set() else f"{image.encode()} in memory only",
            clip,
        )
