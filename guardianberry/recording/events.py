"""Makes the files of events: the alert image and the clip. Tells the uploader about them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from guardianberry.filenames import ImageName, VideoName, free_path
from guardianberry.recording.clip import ClipWriter, recover_clips, remove_parts
from guardianberry.recording.clock import Clock
from guardianberry.recording.mp4 import WRITE_ERRORS
from guardianberry.recording.recorder import EventFacts, Inference, Stop
from guardianberry.recording.retention import Disk
from guardianberry.recording.snapshot import save_alert_image

if TYPE_CHECKING:
    from guardianberry.camera.stream import Tap
    from guardianberry.upload.uploader import Uploader

log = logging.getLogger(__name__)


class EventFiles:
    """Makes the files of one event after the other in `images_folder` and `videos_folder`.

    A file that cannot be written is a warning in the log, never an exception.
    """

    def __init__(
        self,
        *,
        images_folder: Path,
        videos_folder: Path,
        clock: Clock,
        disk: Disk,
        uploads: Uploader,
        max_recording_duration_s: float,
        frame_rate_fps: float,
    ) -> None:
        self._images_folder = images_folder
        self._videos_folder = videos_folder
        self._clock = clock
        self._disk = disk
        self._uploads = uploads
        self._max_recording_duration_s = max_recording_duration_s
        self._frame_rate_fps = frame_rate_fps
        self._clip: ClipWriter | None = None
        self._clips_written: list[ClipWriter] = []  # stopped, perhaps not finished yet
        self._holding = True  # an earlier run may have left held files
        self._no_clip_reason: str | None = None  # of the current event
        self.started = 0

    @property
    def clip_end_reason(self) -> str | None:
        """Why the current event's clip takes no more video; None while it does, and without an event."""
        return self._clip.end_reason if self._clip is not None else self._no_clip_reason

    def recover(self) -> None:
        """Finish the files that an earlier run left open. Call once, before the first event."""
        for folder in (self._images_folder, self._videos_folder):
            try:
                remove_parts(folder)
            except OSError as error:
                log.warning("%s cannot be written to (%s); make it writable for this user", folder, error)
        recover_clips(
            self._videos_folder,
            max_duration_s=self._max_recording_duration_s,
            frame_rate_fps=self._frame_rate_fps,
        )

    def start(self, first: Inference, tap: Tap, facts: EventFacts) -> None:
        """Save and offer the alert image of `first`, begin the clip. It is logged once a kill takes neither."""
        trusted = self._clock.is_set()
        self._holding = self._holding or not trusted
        event_id = self._clock.new_event_id(first.time_s)
        height_px, width_px = first.frame.bgr.shape[:2]
        image = ImageName(event_id, round(100 * max(first.confidences)), width_px, height_px)
        image_file = self._save_image(first, image, held=not trusted)
        clip_name = VideoName(
            event_id, 0, facts.max_people_found, facts.max_confidence, facts.inference_time_ms, width_px, height_px
        )
        self._begin_clip(clip_name, tap, held_since_s=None if trusted else first.time_s)
        self.started += 1
        log.info(
            "event %d: %d person(s), %d %%; alert image %s, clip %s",
            event_id,
            len(first.confidences),
            image.confidence,
            image_file.name if image_file else "NOT SAVED",
            "begun" if self._clip else "NOT BEGUN",
        )

    def note(self, facts: EventFacts) -> None:
        """Update what is known of the event in the name of its clip."""
        if self._clip is not None:
            self._clip.update(facts)

    def stop(self, stop: Stop) -> None:
        """End the current clip. Its thread finishes the file and tells the uploader."""
        log.info("recording stopped: %s", stop.reason)
        if self._clip is not None:
            self._clip.finish(stop)
            self._clips_written = [clip for clip in self._clips_written if not clip.join(0)]
            self._clips_written.append(self._clip)
        self._clip = self._no_clip_reason = None

    def release_held(self) -> None:
        """Give the events from before the clock was set their true time, once it is set. It costs little."""
        if not self._holding or not self._clock.is_set():
            return
        self._clips_written = [clip for clip in self._clips_written if not clip.join(0)]
        self._holding = self._clip is not None or bool(self._clips_written)
        if self._clock.release_held(self._images_folder) + self._clock.release_held(self._videos_folder):
            self._uploads.sweep_soon()

    def close(self, timeout_s: float) -> None:
        """Wait until the stopped clips have their final names, at most `timeout_s` for each."""
        for clip in self._clips_written:
            if not clip.join(timeout_s):
                log.warning("clip: the disk is slow; the next start finishes what is still open")

    def _save_image(self, first: Inference, name: ImageName, *, held: bool) -> Path | None:
        path = free_path(self._images_folder, name)
        if held:
            path = self._images_folder / self._clock.hold(name, first.time_s)
        saved = self._try_to_save(path, first) or (self._disk.give_up_reserve() and self._try_to_save(path, first))
        if saved and not held:
            jpeg, remove = path.read_bytes(), lambda: path.unlink(missing_ok=True)
            self._uploads.offer_alert(path.name, jpeg, frame_arrival_s=first.time_s, stored=remove)
            self._uploads.alert_saved(path.name)
        return path if saved else None

    def _try_to_save(self, path: Path, first: Inference) -> bool:
        try:
            save_alert_image(path, first.frame.bgr, first.people)
        except OSError as error:
            log.warning("alert image: cannot write %s (%s)", path, error)
            return False
        return True

    def _begin_clip(self, name: VideoName, tap: Tap, *, held_since_s: float | None) -> None:
        def final_name(name: VideoName) -> str:
            return name.encode() if held_since_s is None else self._clock.hold(name, held_since_s)

        try:
            self._clip = ClipWriter(
                tap,
                self._videos_folder,
                name=name,
                final_name=final_name,
                max_duration_s=self._max_recording_duration_s,
                frame_rate_fps=self._frame_rate_fps,
                finished=self._clip_finished,
            )
        except WRITE_ERRORS as error:
            tap.close()
            self._no_clip_reason = "there is no clip"
            log.warning("clip: cannot record into %s (%s); alerts go on", self._videos_folder, error)

    def _clip_finished(self, path: Path) -> None:
        log.info("clip finished: %s", path.name)
        self._uploads.sweep_soon()
