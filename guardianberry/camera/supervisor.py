"""Keeps video coming: reads a hand-started stream or starts the camera program, watches it, replaces it on a fault.

The main loop calls `Camera.check_and_launch_libcamera` on every pass. A camera is alive while bytes arrive, whatever
its process does: with a hung sensor rpicam-vid runs on, silent for ever.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from guardianberry.camera.command import Offer, Settings, ask_program, command_line, find_program
from guardianberry.camera.decoder import Frame, UnusableStreamError
from guardianberry.camera.other_users import RunningCamera, is_trusted, running_cameras, uid_of_other_end
from guardianberry.camera.process import CameraError, CameraProcess, Fault, fault_of_exit
from guardianberry.camera.ring import Tap
from guardianberry.camera.stream import Stream
from guardianberry.logs import OncePerCause

log = logging.getLogger(__name__)

# Without a byte for so long the camera hangs; a healthy one never pauses for a second. rpicam-vid does not end then.
STALL_S = 5.0
# Pause before the next try in a row, from the start of the last one; the last value repeats.
BACK_OFF_S = (0.5, 1.0, 2.0, 4.0)
# After so much video without a fault the outage is over: short pauses and warnings again.
HEALTHY_S = 10.0
# A camera takes a while to its first byte; a shorter stall limit begins after it.
FIRST_BYTE_S = 5.0
# Bytes arrive, but no frames can be made of them.
NO_KEY_FRAME_S = 60.0
UNDECODABLE_S = 10.0
CONNECT_TIMEOUT_S = 1.0
# How soon a waiting consumer notices the stop flag that the signal handler sets.
WAKE_S = 0.25
_NEVER = threading.Event()


def fault_of_stream(stream: Stream, now_s: float, stall_s: float) -> Fault | None:
    """What is wrong with a stream that is still open; None if nothing is."""
    limit_s = stall_s if stream.received_bytes else max(stall_s, FIRST_BYTE_S)
    if now_s - stream.last_byte_s > limit_s:
        return Fault("stalled", f"stalled: no byte for {now_s - stream.last_byte_s:.1f} s")
    if stream.last_byte_s - stream.last_unit_s > max(stall_s, FIRST_BYTE_S):
        return Fault("garbage", f"no picture in the data of {stream.last_byte_s - stream.last_unit_s:.1f} s")
    if now_s - stream.last_key_s > NO_KEY_FRAME_S:
        return Fault("no key frame", f"sent no key frame for {now_s - stream.last_key_s:.0f} s")
    failing_s = stream.failing_since_s
    if failing_s is not None and now_s - failing_s > max(stall_s, UNDECODABLE_S):
        return Fault("garbage", f"no frame could be decoded for {now_s - failing_s:.1f} s")
    return None


class Camera:
    """The source of video: a hand-started stream if there is one, else our own child. Used from the main thread."""

    def __init__(
        self,
        *,
        width_px: int,
        height_px: int,
        frame_rate_fps: float,
        bitrate_bps: int,
        stream_url: str,
        pre_roll_s: float,
        options: Sequence[str] = (),
        stall_s: float = STALL_S,
        wait_for_other_users: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream: Stream | None = None
        self.launches = 0
        self.state = "starting"  # starting, streaming, waiting, off duty, stopped
        self.fault: Fault | None = None  # the last one, while it lasts
        self.settings = Settings(width_px, height_px, frame_rate_fps, bitrate_bps, tuple(options))
        url = urlsplit(stream_url)
        self._host, self._port = url.hostname or "127.0.0.1", url.port or 8888
        self._pre_roll_s = pre_roll_s
        self._stall_s = stall_s
        self._wait_for_other_users = wait_for_other_users
        self._clock = clock
        self._process: CameraProcess | None = None
        self._source = ""
        self._offer: Offer | None = None  # asked for once, and again after a failed start
        self._codec = "h264"
        self._next_number = 0
        self._tries = 0
        self._retry_at_s = clock()
        self._planned_launches = 1
        self._causes = OncePerCause()
        self._is_logged = False  # the present outage

    @property
    def relaunches(self) -> int:
        """How often the camera has been replaced since the start, the returns to duty left out."""
        return max(0, self.launches - self._planned_launches)

    def check_and_launch_libcamera(self, *, is_wanted: bool = True) -> None:
        """Called on every pass: cheap while video arrives, else stops what is broken and tries again when it is time.

        While it is not wanted, the camera is off. Blocks for no longer than it takes to stop the program (2.5 s), or to
        ask what it can do (6 s; usually 1).
        """
        if self.state == "stopped":
            return
        if not is_wanted:
            self._switch_off()
            return
        if self.stream is not None:
            fault = self._fault(self.stream)
            if fault is None:
                self._healthy(self.stream)
                return
            if self.state != "streaming":
                self._offer = None
            self._close()
            self._failed(fault)
        if self._clock() >= self._retry_at_s:
            self._try()

    def newest_frame(self, *, timeout_s: float, after_number: int = -1, stop: threading.Event = _NEVER) -> Frame | None:
        """As Stream.newest_frame, also while there is no stream; returns early when `stop` is set.

        Numbers go on counting over relaunches. A stream that cannot be decoded is rejected.
        """
        deadline_s = time.monotonic() + timeout_s
        while not stop.is_set() and (left_s := min(WAKE_S, deadline_s - time.monotonic())) > 0:
            if self.stream is not None:
                try:
                    frame = self.stream.newest_frame(after_number, left_s)
                except (UnusableStreamError, ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
                    self.reject(error)
                    return None
                if frame is not None:
                    return frame
            if self.stream is None or self.stream.ended:
                stop.wait(left_s)
                return None
        return None

    def reject(self, error: Exception) -> None:
        """Its frames cannot be used, as `error` shows: the camera is replaced, as after any other fault."""
        if self.stream is not None:
            self._close()
            text = f"the video of {self._source} cannot be used ({type(error).__name__}: {error})"
            log.debug("%s", text, exc_info=error)
            self._failed(Fault(f"unusable {type(error).__name__}", text))

    def open_tap(self, at_s: float) -> Tap:
        """As Stream.open_tap; a tap that has ended while there is no stream."""
        if self.stream is not None:
            return self.stream.open_tap(at_s)
        tap = Tap(threading.Condition())
        tap.close()
        return tap

    def stop(self) -> None:
        """Stops the camera for good, within 3 s whatever it does. Taps keep what they have."""
        self._close()
        self.state = "stopped"

    def _switch_off(self) -> None:
        if self.state == "off duty":
            return
        self._close()
        self._planned_launches += self.launches > 0
        self._tries, self._retry_at_s = 0, self._clock()
        self.state = "off duty"

    def _try(self) -> None:
        started_s = self._clock()
        pause_s = BACK_OFF_S[min(self._tries, len(BACK_OFF_S) - 1)]
        self._tries += 1
        try:
            fd = self._open()
        except CameraError as error:
            self._offer = None
            self._failed(error.fault)
        else:
            self.launches += 1
            self.state = "starting"
            self.stream = Stream(fd, pre_roll_s=self._pre_roll_s, clock=self._clock, first_number=self._next_number)
        self._retry_at_s = started_s + pause_s

    def _open(self) -> int:
        """A descriptor to read video from."""
        others = running_cameras() if self._wait_for_other_users else []
        for other in others:
            if other.listens_on_port == self._port:
                return self._connect(other)
        if others:
            who = ", ".join(map(str, others))
            raise CameraError(f"held {who}", f"the camera is used by {who}: waiting until it ends")
        program = find_program()
        if self._offer is None:
            self._offer = ask_program(program, self.settings)
        command = command_line(program, self.settings, self._offer, self._codec)
        log.debug("starting %s", " ".join(command))
        self._process = CameraProcess(command)
        self._source = f"{self._process.name} (pid {self._process.pid})"
        return self._process.video_fd

    def _connect(self, other: RunningCamera) -> int:
        where = f"tcp://{self._host}:{self._port}"
        try:
            connection = socket.create_connection((self._host, self._port), CONNECT_TIMEOUT_S)
        except OSError as error:
            raise CameraError("connect", f"{other} should stream to {where}, which cannot be read: {error}") from error
        uid = uid_of_other_end(connection, CONNECT_TIMEOUT_S)
        if uid is None or not is_trusted(uid):
            connection.close()
            owner = "nobody has accepted the connection" if uid is None else f"it belongs to user id {uid}"
            text = f"{where} is not read, because {owner}; only a stream of this user or of root is"
            raise CameraError("foreign stream", text)
        self._source = f"{other} on {where}"
        return connection.detach()

    def _fault(self, stream: Stream) -> Fault | None:
        if not stream.ended:
            return fault_of_stream(stream, self._clock(), self._stall_s)
        if self._process is None or stream.end_reason:
            return Fault("ended", f"{self._source} ended ({stream.end_reason or 'end of data'})")
        code = self._process.exit_code(timeout_s=0.3)
        fault = fault_of_exit(self._process.name, code, self._process.last_lines())
        if fault.cause == "codec":  # some builds for the Pi 5 take H.264 to stdout only this way
            self._codec = "libav" if self._codec == "h264" else "h264"
        return fault

    def _healthy(self, stream: Stream) -> None:
        if stream.next_number == self._next_number:
            return  # no access unit yet
        if self.state != "streaming":
            self._announce(stream.size)
        if self._tries and stream.last_unit_s - stream.started_s > HEALTHY_S:
            self._tries = 0
            if self._causes.forget():
                log.info("camera: no fault for %.0f s; %d relaunches so far", HEALTHY_S, self.relaunches)

    def _announce(self, size: tuple[int, int]) -> None:
        self.state, self.fault = "streaming", None
        if self.launches == 1:
            log.info("camera: video from %s, %d x %d", self._source, *size)
        elif self._is_logged:
            log.info("camera is back: video from %s, %d x %d, relaunch %d", self._source, *size, self.relaunches)
        self._is_logged = False

    def _failed(self, fault: Fault) -> None:
        self.state, self.fault = "waiting", fault
        if not self._causes.is_new(fault.cause):
            log.debug("camera: %s", fault.text)
            return
        self._is_logged = True
        log.warning("camera: %s; trying again every few seconds", fault.text)

    def _close(self) -> None:
        process, stream = self._process, self.stream
        self._process = self.stream = None
        if process is not None:
            process.stop()
        if stream is not None:
            stream.close()
            self._next_number = stream.next_number
