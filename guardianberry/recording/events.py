"""What the recorder decides, done: the alert image, the clip, and the word to the uploader, in this order."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from guardianberry.filenames import ImageName, VideoName, free_path
from guardianberry.recording.clip import ClipWriter, Tap, recover_clips, remove_parts
from guardianberry.recording.clock import Clock
from guardianberry.recording.mp4 import WRITE_ERRORS
from guardianberry.recording.recorder import EventFacts, Inference, Stop
from guardianberry.recording.retention import Disk
from guardianberry.recording.snapshot import save_alert_image

log = logging.getLogger(__name__)


class Uploads(Protocol):
    """Whom to tell about new files; `uploader.Uploader` is one."""

    def offer_alert(self, path: Path, frame_arrival_s: float) -> None: ...
    def sweep_soon(self) -> None: ...


class EventFiles:
    """Makes the files of one event after the other in `images_folder` and `videos_folder`.

    A disk that refuses costs the file that could not be written, with a warning, and never an exception.
    """

    def __init__(
        self,
        *,
        images_folder: Path,
        videos_folder: Path,
        clock: Clock,
        disk: Disk,
        uploads: Uploads,
        max_recording_duration_s: float,
        frame_rate_fps: float,
        jpeg_quality: int,
    ) -> None:
        self._images_folder = images_folder
        self._videos_folder = videos_folder
        self._clock = clock
        self._disk = disk
        self._uploads = uploads
        self._max_recording_duration_s = max_recording_duration_s
        self._frame_rate_fps = frame_rate_fps
        self._jpeg_quality = jpeg_quality
        self._clip: ClipWriter | None = None
        self._clips_written: list[ClipWriter] = []  # stopped, perhaps still on their way to the disk
        self._holding = True  # an earlier run may have left some
        self.started = 0

    @property
    def clip_end_reason(self) -> str | None:
        """Why the clip under way gets no more video; None while it does, and when there is none."""
        return self._clip.end_reason if self._clip is not None else None

    def recover(self) -> None:
        """Finish what an earlier run left open. Call once, before the first event."""
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
        """Save and offer the alert image of `first`, then begin the clip. Logged only once a kill can take neither."""
        trusted = self._clock.is_set()
        self._holding = self._holding or not trusted
        label = self._clock.new_label(first.time_s)
        height_px, width_px = first.frame.bgr.shape[:2]
        image = ImageName(label, round(100 * max(first.confidences)), width_px, height_px)
        image_file = self._save_image(first, image, held=not trusted)
        clip_name = VideoName(
            label, 0, facts.max_people_found, facts.max_confidence, facts.inference_time_ms, width_px, height_px
        )
        self._begin_clip(clip_name, tap, held_since_s=None if trusted else first.time_s)
        self.started += 1
        log.info(
            "event %d: %d person(s), %d %%; alert image %s, clip %s",
            label,
            len(first.confidences),
            image.confidence,
            image_file.name if image_file else "NOT SAVED",
            "begun" if self._clip else "NOT BEGUN",
        )

    def note(self, facts: EventFacts) -> None:
        """Keep what the clip's name says of the event up to date."""
        if self._clip is not None:
            self._clip.update(facts)

    def stop(self, stop: Stop) -> None:
        """End the clip under way; it reaches the disk and the uploader in its own time."""
        log.info("recording stopped: %s", stop.reason)
        if self._clip is not None:
            self._clip.finish(stop)
            self._clips_written = [clip for clip in self._clips_written if not clip.join(0)]
            self._clips_written.append(self._clip)
            self._clip = None

    def release_held(self) -> None:
        """Name events from before the clock was set by their true time, once it is. Cheap; call it now and then."""
        if not self._holding or not self._clock.is_set():
            return
        self._clips_written = [clip for clip in self._clips_written if not clip.join(0)]
        self._holding = self._clip is not None or bool(self._clips_written)
        if self._clock.release_held(self._images_folder) + self._clock.release_held(self._videos_folder):
            self._uploads.sweep_soon()

    def close(self, timeout_s: float) -> None:
        """Wait until the clips that were stopped are on the disk under their final names."""
        for clip in self._clips_written:
            if not clip.join(timeout_s):
                log.warning("clip: the disk is slow; the next start finishes what is still open")

    def _save_image(self, first: Inference, name: ImageName, *, held: bool) -> Path | None:
        path = free_path(self._images_folder, name)
        if held:
            path = self._images_folder / self._clock.hold(name, first.time_s)
        saved = self._try_to_save(path, first) or (self._disk.give_up_reserve() and self._try_to_save(path, first))
        if saved and not held:
            self._uploads.offer_alert(path, first.time_s)
        return path if saved else None

    def _try_to_save(self, path: Path, first: Inference) -> bool:
        try:
            save_alert_image(path, first.frame.bgr, first.people, jpeg_quality=self._jpeg_quality)
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
            log.warning("clip: cannot record into %s (%s); alerts go on", self._videos_folder, error)

    def _clip_finished(self, path: Path) -> None:
        log.info("clip finished: %s", path.name)
        self._uploads.sweep_soon()
