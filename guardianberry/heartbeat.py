"""Heartbeats: a small object every few minutes says that the camera films and looks, and how it does.

No heartbeat comes where no frame is looked at: aws/watch.py takes a hung camera, a cut line and a power cut for the
same silence. Off duty they come as long as the loop runs.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardianberry.disk import free_bytes
from guardianberry.logs import OncePerCause
from guardianberry.machine import power_faults
from guardianberry.upload.errors import Interrupted, UploadError

if TYPE_CHECKING:
    from guardianberry.camera.supervisor import Camera
    from guardianberry.duty import Duty
    from guardianberry.recording.events import EventFiles
    from guardianberry.upload.uploader import Uploader

log = logging.getLogger(__name__)

_FRESH_S = 60.0  # a frame that was looked at longer ago does not show that the camera works
_TICK_S = 1.0


class Heartbeat:
    """Sends one every `every_s` (0: never) in a thread of its own, with one try, and never while an alert is uploaded.

    One that fails is not sent later: the next one tells more.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_s: float,
        uploader: Uploader,
        camera: Camera,
        events: EventFiles,
        duty: Duty,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        ask_power: Callable[[], list[str] | None] = power_faults,
    ) -> None:
        self._folders = (folder / "images", folder / "videos")
        self._every_s = every_s
        self._uploader, self._camera, self._events, self._duty = uploader, camera, events, duty
        self._wall, self._monotonic, self._ask_power = wall, monotonic, ask_power
        self._inference_s = float("-inf")
        self._dark_since: int | None = None
        self._next_s = float("-inf")
        self._day, self._events_before, self._worst_latency_s = "", 0, 0.0
        self._failures = OncePerCause()
        self._closed = threading.Event()

    def start(self) -> None:
        if self._every_s:
            threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._closed.set()

    def note_inference(self, arrival_s: float, *, view_lost: bool = False) -> None:
        """A frame was decoded and looked at; it arrived at `arrival_s` on the monotonic clock. For the loop."""
        self._inference_s = arrival_s
        if view_lost != (self._dark_since is not None):
            self._dark_since = int(self._wall()) if view_lost else None

    def send_if_due(self) -> None:
        """For the thread, about once a second. Waits for the network."""
        now_s = self._monotonic()
        self._begin_day()
        alive_s = self._duty.asked_s if self._duty.off_reason else self._inference_s
        if now_s < self._next_s or now_s - alive_s > _FRESH_S or not self._uploader.may_upload_now():
            return
        self._next_s = now_s + self._every_s
        at = int(self._wall())
        try:
            self._uploader.put_heartbeat(at, json.dumps(self._content(at)).encode())
        except UploadError as error:
            if self._failures.is_new(str(error)) and not self._closed.is_set():
                log.warning("heartbeat: not sent (%s); the next one is tried in %d s", error, self._every_s)
        except Interrupted:  # the daemon ends
            return
        else:
            self._failures.forget()

    def _run(self) -> None:
        while not self._closed.wait(_TICK_S):
            try:
                self.send_if_due()
            except Exception:
                if self._failures.is_new("program"):
                    log.exception("heartbeat: not sent, because of an error of the program")

    def _begin_day(self) -> None:
        day = f"{datetime.fromtimestamp(self._wall(), UTC).astimezone():%Y-%m-%d}"
        if day != self._day:
            self._events_before = self._events.started if self._day else 0
            self._day, self._worst_latency_s = day, 0.0

    def _content(self, at: int) -> dict[str, Any]:
        """The fields that aws/watch.py reads. Counts are of today, since midnight or the start of the process."""
        queued = self._uploader.pending()
        self._worst_latency_s = max(self._worst_latency_s, self._uploader.take_worst_alert_latency_s())
        return {
            "camera_name": self._uploader.camera_name,
            "time": at,
            "waiting_images": queued.images,
            "waiting_videos": queued.videos,
            "oldest_waiting_s": None if queued.oldest_start is None else max(0, at - queued.oldest_start),
            "free_disk_bytes": free_bytes(*self._folders),
            "events_today": self._events.started - self._events_before,
            "worst_alert_latency_s": round(self._worst_latency_s, 3) or None,
            "camera_relaunches": self._camera.relaunches,
            "throttled": ", ".join(self._ask_power() or []),
            "armed": not self._duty.off_reason,
            "dark_since": self._dark_since,
        }
