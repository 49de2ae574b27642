#!/usr/bin/env python3
"""GuardianBerry's camera daemon: finds people, saves an image and a clip of each event, uploads both to S3.

It reads H.264 from rpicam-vid and runs YOLOv5 on the newest frame. An event makes two files: images/*.jpg, its first
detection, and videos/*.mp4, a clip that begins a few seconds earlier. Both are uploaded to private S3 buckets, the
newest image first, and deleted once S3 has confirmed them.

What happens when ...
    the camera dies or hangs     it is stopped and started again; the clip under way is finished and kept
    the network is down          files stay in images/ and videos/; recording and detection are not delayed
    the disk fills               the oldest videos are deleted, each with a warning; alerts go on
    a disk fails or hangs        alerts are uploaded from memory; one line in the log says what to do
    the clock is wrong or jumps  durations stay right; events wait until the clock is set and then get their true time
    the power goes               the clip loses less than a second; the next start finishes and uploads it
    nobody should be filmed      ARMED_HOURS, or `touch disarmed` in this folder: for 12 hours at most
    this loop hangs              it is ended with a stack dump after LOOP_STALL_S, and launch.sh starts it again

Configure it by editing the constants below. README.md explains each; the parts are in guardianberry/.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.umask(0o077)  # before the first import of ours, which writes __pycache__; all files of this process are private

import argparse
import faulthandler
import logging
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from guardianberry.armed import ArmedHours
from guardianberry.duty import Duty
from guardianberry.logs import Handler
from guardianberry.machine import StopFlag, keep_memory_off_the_disk
from guardianberry.recording.clock import CLOCK_WAIT_S, Clock, system_clock_is_synchronised
from guardianberry.recording.recorder import Alert, Inference, Recorder, Start, Stop
from guardianberry.settings import find_problems
from guardianberry.summary import DailySummary

if TYPE_CHECKING:  # these load OpenCV, OpenVINO or boto3, so each is imported when it is needed
    from guardianberry.camera.supervisor import Camera
    from guardianberry.detection.detector import Detector
    from guardianberry.detection.finder import PeopleFinder
    from guardianberry.detection.preparation import Preparation
    from guardianberry.detection.weights import Graph
    from guardianberry.heartbeat import Heartbeat
    from guardianberry.recording.events import EventFiles
    from guardianberry.upload.uploader import Uploader

# ---- Camera's name, heartbeat, hours
CAMERA_NAME = ""  # in mails and on the page, such as "Front door"; empty: the last 4 digits of the serial number
HEARTBEAT_S = 0  # 300: a small object every 5 minutes, so that aws/ tells you when the camera falls silent; 0: none
ARMED_HOURS = ""  # local time, such as "mon-fri 08:00-17:00, daily 23:00-06:00"; else nothing is filmed; empty: always

# ---- Events: when a recording starts and how long it lasts
MAX_RECORDING_DURATION_S = 20  # of video in all, pre-roll included; longer clips reach S3 later on a slow uplink
MIN_GAP_BETWEEN_VIDEO_START_S = 60  # from start to start of clips; somebody new within it gets a picture and no clip
PERSON_GONE_AFTER_S = 2  # people are lost for a second when they turn or bend; 0 stops at the first frame without one
PRE_ROLL_S = 3  # video from before the detection: how the person came in; kept in memory, 0.25 MB a second
DETECTIONS_TO_START = 2  # inferences with a person; 1 makes each flicker an event, 3 is a frame later

# ---- Detector: YOLOv5, people only
WEIGHTS = "yolov5n.pt"  # in models/: an official YOLOv5 checkpoint, downloaded once where it is missing
CONF_THRES = 0.255  # 0 to 1; lower takes shadows for people, higher misses people in the dark
INFERENCE_AT_LEAST_EVERY_S = 1  # where nothing moves, too, for people who stand still; 10 is cooler, but later
DETECTOR_INPUT_WIDTH_PX = 416  # 640 costs 2.3 times as much, sees 1.5 times as far, and takes some cars for people
IGNORE_ZONES = ()  # polygons in fractions of the picture: (((0, 0), (0.3, 0), (0.3, 1)),); who stands in one is ignored

# ---- Camera
FRAME_WIDTH_PX = 640  # what is recorded; more costs bytes and decoding, the detector's input stays the same
FRAME_HEIGHT_PX = 480  # 4:3, the shape of Camera Module 1, 2 and HQ; Module 3 is 16:9 and shows all of it with 360
FRAME_RATE_FPS = 10  # enough to see what a person does; each frame more costs detection time and bytes
BITRATE_BPS = 2_000_000  # 5 MB a clip; the default of the Pi 4's encoder, 10 Mbit/s, would be 25 MB
CAMERA_OPTIONS = ()  # more for the camera program, as ("--rotation", "180") where it hangs upside down

# ---- Files and buckets
VIDEOS_BUCKET = "guardianberry.videos"  # names are unique in all of AWS: put yours here
IMAGES_BUCKET = "guardianberry.images"  # must differ from the other: each new object here alerts somebody
LIVE_UPLOAD = True  # clips go out while they are recorded: twice over the uplink, some 15 requests an event more
SERVER_SIDE_ENCRYPTION = "AES256"  # None for S3 servers without encryption
MIN_FREE_DISK_BYTES = 500_000_000  # below it the oldest videos are deleted, uploaded or not; a full card stops the Pi

# ---- Fixed: others rely on these three, nobody should change them
IOU_THRES = 0.45  # 0 to 1; boxes that overlap more are one person
MAX_DET = 1000  # people in one frame, at most
STREAM_URL = "tcp://127.0.0.1:8888"  # a stream started by hand is read from here; the daemon itself never listens

HERE = Path(__file__).resolve().parent
LOOP_TICK_S = 0.5  # the loop runs this often even without a frame; at most 1 s, or SIGTERM is noticed too late
LOOP_STALL_S = 60  # after so long the loop hangs in native code; its slowest pass, a camera restart, takes 3 s
DEMO_GAP_S = 10  # in place of MIN_GAP_BETWEEN_VIDEO_START_S, so that the demo shows two events within half a minute
EXIT_CANNOT_RUN = 1  # now: another one runs, no weights; launch.sh tries again, with growing pauses
EXIT_NEEDS_EDITING = 78  # EX_CONFIG of sysexits.h: only an edit of this file helps, so launch.sh does not try again

log = logging.getLogger("guardianberry")


def make_detector(graph: Graph | None = None) -> Detector:
    """The daemon's detector, also for --check; without `graph` it waits for that of WEIGHTS. Raises WeightsError."""
    from guardianberry.detection.detector import Detector
    from guardianberry.detection.weights import find_graph

    return Detector(
        graph or find_graph(WEIGHTS, HERE / "models"),
        frame_width_px=FRAME_WIDTH_PX,
        frame_height_px=FRAME_HEIGHT_PX,
        input_width_px=DETECTOR_INPUT_WIDTH_PX,
        conf_thres=CONF_THRES,
        iou_thres=IOU_THRES,
        max_det=MAX_DET,
    )


def make_first_detector(preparation: Preparation) -> Detector:
    """Of WEIGHTS, or of the bundled model until they are ready. Raises WeightsError."""
    from guardianberry.detection.detector import advice_if_slow

    detector = make_detector(preparation.first_graph())
    if advice := advice_if_slow(detector.measure_ms()):
        log.warning("%s", advice)
    return detector


def take_prepared_weights(preparation: Preparation, uploader: Uploader) -> Detector | None:
    """The detector of WEIGHTS, once, if the daemon started with the bundled model and WEIGHTS are ready now."""
    from guardianberry.detection.weights import WeightsError

    try:
        detector = make_detector(graph) if (graph := preparation.later_graph()) else None
    except WeightsError as error:
        log.error("%s The bundled model stays in use", error)
        return None
    if detector:
        uploader.set_video_metadata("model", detector.model_name)
    return detector


def make_finder(detector: Detector) -> PeopleFinder:
    """Its detector may be replaced between two frames."""
    from guardianberry.detection.finder import PeopleFinder

    return PeopleFinder(detector, inference_at_least_every_s=INFERENCE_AT_LEAST_EVERY_S, ignore_zones=IGNORE_ZONES)


def make_camera(*, wait_for_other_users: bool) -> Camera:
    """The daemon's camera, also for --check. Nothing is started yet."""
    from guardianberry.camera.supervisor import Camera

    return Camera(
        width_px=FRAME_WIDTH_PX,
        height_px=FRAME_HEIGHT_PX,
        frame_rate_fps=FRAME_RATE_FPS,
        bitrate_bps=BITRATE_BPS,
        stream_url=STREAM_URL,
        pre_roll_s=PRE_ROLL_S,
        options=CAMERA_OPTIONS,
        wait_for_other_users=wait_for_other_users,
    )


def make_recorder(*, demo: bool) -> Recorder:
    return Recorder(
        min_gap_between_video_start_s=DEMO_GAP_S if demo else MIN_GAP_BETWEEN_VIDEO_START_S,
        person_gone_after_s=PERSON_GONE_AFTER_S,
        detections_to_start=DETECTIONS_TO_START,
    )


def make_uploader(folder: Path, clock: Clock, model_name: str) -> Uploader:
    """`model_name`: the file name of the weights, for the videos' metadata."""
    from guardianberry.machine import get_rpi_serial_number
    from guardianberry.upload.uploader import Uploader

    return Uploader(
        images_folder=folder / "images",
        videos_folder=folder / "videos",
        images_bucket=IMAGES_BUCKET,
        videos_bucket=VIDEOS_BUCKET,
        server_side_encryption=SERVER_SIDE_ENCRYPTION,
        rpi_serial_no=get_rpi_serial_number(),
        camera_name=CAMERA_NAME,
        video_metadata={
            "model": model_name,
            "frame_rate": str(FRAME_RATE_FPS),
            "confidence_threshold": str(CONF_THRES),
        },
        may_upload=clock.is_set,
    )


def make_event_files(folder: Path, clock: Clock, uploader: Uploader) -> EventFiles:
    from guardianberry.recording.events import EventFiles

    return EventFiles(
        folder,
        clock=clock,
        uploader=uploader,
        min_free_disk_bytes=MIN_FREE_DISK_BYTES,
        max_recording_duration_s=MAX_RECORDING_DURATION_S,
        frame_rate_fps=FRAME_RATE_FPS,
        live=uploader.live if LIVE_UPLOAD else None,
    )


def make_heartbeat(
    folder: Path, uploader: Uploader, camera: Camera, events: EventFiles, duty: Duty, *, demo: bool
) -> Heartbeat:
    from guardianberry.heartbeat import Heartbeat

    every_s = 0 if demo else HEARTBEAT_S
    return Heartbeat(folder, every_s=every_s, uploader=uploader, camera=camera, events=events, duty=duty)


def run(folder: Path, stop: threading.Event, at_the_end: ExitStack, *, demo: bool = False) -> None:
    """Guard until `stop` is set. Files go to `folder`/videos and `folder`/images; the loop itself touches no disk."""
    from guardianberry.detection.preparation import Preparation

    preparation = Preparation(WEIGHTS, HERE / "models", stop=stop)
    finder = make_finder(make_first_detector(preparation))  # which alone holds it: it may be replaced
    clock = Clock(wait_s=0 if demo else CLOCK_WAIT_S, is_synchronised=system_clock_is_synchronised)
    uploader = make_uploader(folder, clock, finder.detector.model_name)
    events = make_event_files(folder, clock, uploader)
    recorder = make_recorder(demo=demo)
    camera = make_camera(wait_for_other_users=not demo)  # a demo does not use the real camera
    summary = DailySummary(folder, uploader, clock.monotonic())
    duty = Duty(folder, ArmedHours("" if demo else ARMED_HOURS), is_synchronised=system_clock_is_synchronised)
    heartbeat = make_heartbeat(folder, uploader, camera, events, duty, demo=demo)
    at_the_end.callback(finish, recorder, camera, events, uploader, (duty, heartbeat))
    events.begin()
    for part in (uploader, duty, heartbeat):
        part.start()
    last_number, expected_s = -1, float("-inf")
    while not stop.is_set():
        # Check health: of the loop, the camera (none off duty), the clip (does it still get video?), the disks
        expected_s = expect_another_pass(expected_s)
        camera.check_and_launch_libcamera(is_wanted=duty.is_armed())
        if (reason := events.clip_end_reason) and (stopped := recorder.end(clock.monotonic(), reason)):
            events.stop(stopped)
        events.check()
        finder.detector = take_prepared_weights(preparation, uploader) or finder.detector
        summary.log_if_due(clock.monotonic(), events.started, camera.relaunches, finder.still_things)

        # Wait: for a new frame
        frame = camera.newest_frame(timeout_s=LOOP_TICK_S, after_number=last_number, stop=stop)
        if frame is None:
            continue
        last_number = frame.number

        # Detect: where something moves, in every frame while a person is seen, else every INFERENCE_AT_LEAST_EVERY_S
        try:
            people = finder.find(frame, attentive=recorder.attentive, camera_launches=camera.launches)
        except Exception as error:  # noqa: BLE001  whatever a stream holds must not end the daemon; `reject` logs it
            camera.reject(error)
            continue
        if people is None:
            continue
        scores = [person.confidence for person in people]
        inference = Inference(frame.arrival_s, scores, finder.detector.last_ms, frame, people)
        heartbeat.note_inference(frame.arrival_s, view_lost=finder.view_is_lost)

        # Decide, and act
        match recorder.step(inference):
            case Start(first):
                events.start(first, camera.open_tap(first.time_s), recorder.facts())
            case Alert(first):
                events.alert(first)
            case Stop() as action:
                events.stop(action)
            case None if recorder.recording:
                events.note(recorder.facts(), inference)
        if reason := finder.take_view_lost():
            events.alert(inference, view_lost=reason)


def expect_another_pass(expected_s: float = float("-inf")) -> float:
    """Unless this is called again within LOOP_STALL_S, the process ends with a stack dump.

    Returns when it was set; that is handed in again. Each time a thread starts, so every LOOP_TICK_S is enough.
    """
    if (now_s := time.monotonic()) - expected_s < LOOP_TICK_S:
        return expected_s
    with suppress(RuntimeError):  # no thread can be started now, which must not end the guard
        faulthandler.dump_traceback_later(LOOP_STALL_S, exit=True)
    return now_s


def finish(
    recorder: Recorder, camera: Camera, events: EventFiles, uploader: Uploader, others: tuple[Duty, Heartbeat]
) -> None:
    """Asked to stop, or after an error in the loop: within 5 s, without waiting for the network."""
    if stopped := recorder.end(time.monotonic(), "the daemon ends"):
        events.stop(stopped)
    camera.stop()
    for other in others:
        other.stop()
    events.close(timeout_s=1.0)
    uploader.stop(timeout_s=0.5)
    faulthandler.cancel_dump_traceback_later()


def guard(folder: Path, stop: threading.Event, *, demo: bool = False) -> int:
    """Lock the folder against a second daemon, and run; the exit code."""
    from guardianberry.detection.weights import WeightsError
    from guardianberry.machine import AlreadyRunningError, lock_folder, use_one_malloc_arena

    use_one_malloc_arena()
    try:
        expect_another_pass()  # the disk may hang
        lock = lock_folder(folder)
        faulthandler.cancel_dump_traceback_later()
        with ExitStack() as at_the_end:
            run(folder, stop, at_the_end, demo=demo)
        os.close(lock)
    except (AlreadyRunningError, WeightsError) as error:
        if not stop.is_set():  # else it was asked to stop during a download or conversion
            log.error("%s", error)
            return EXIT_CANNOT_RUN
    log.info("stopped as asked")
    return 0


def main() -> int:
    # No abbreviations: launch.sh must recognise the options with which this program ends by itself.
    parser = argparse.ArgumentParser(
        description="Guards a room with a Raspberry Pi camera. Settings: top of this file.", allow_abbrev=False
    )
    parser.add_argument("--check", action="store_true", help="report what works here and what does not")
    parser.add_argument("--upload", action="store_true", help="with --check: also put a tiny object into each bucket")
    parser.add_argument("--demo", nargs="?", const="", metavar="VIDEO", help="a video file in place of the camera")
    parser.add_argument("-v", dest="verbose", action="store_true", help="log each frame")
    options = parser.parse_args()
    if options.upload and not options.check:
        parser.error("--upload goes with --check only")

    keep_memory_off_the_disk()
    video = str(Path(options.demo).resolve()) if options.demo else ""
    os.chdir("/")  # nothing of a folder that others may write to, from which this was called, is ever loaded
    if options.check:
        try:
            from guardianberry.doctor.check import check

            return check(HERE, globals(), make_camera, make_detector, upload=options.upload)
        except ImportError as error:
            sys.stdout.write(f"FAIL  packages     {error}\n{' ' * 19}-> Run this:\n{' ' * 22}{HERE}/launch.sh --demo\n")
            return EXIT_CANNOT_RUN
    set_up_logging(verbose=options.verbose)
    if problems := find_problems(globals()):
        for advice in problems:
            log.error("%s (top of %s)", advice, Path(__file__).name)
        return EXIT_NEEDS_EDITING
    stop = StopFlag()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if options.demo is None:
        return guard(HERE, stop)
    from guardianberry.demo import demo_folder

    with demo_folder(HERE, video, stop) as folder:
        return guard(folder, stop, demo=True)


def set_up_logging(*, verbose: bool) -> None:
    """To stderr. The level is that of our own loggers alone: botocore's debug lines would show signatures."""
    logging.getLogger().addHandler(Handler())
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
