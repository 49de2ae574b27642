#!/usr/bin/env python3
"""GuardianBerry's camera daemon: sees people, keeps the clip, gets the picture out of the house.

It reads H.264 from rpicam-vid, looks for people in the newest frame with YOLOv5, and makes two files an event:
images/*.jpg, the first detection, written at once, and videos/*.mp4, a clip that begins a few seconds earlier. Both
are put into two private S3 buckets, the newest image before everything else, and leave the disk once S3 has them.

What happens when ...
    the camera dies or hangs     it is stopped, reaped and started again; a clip under way is finished and kept
    the network is down          files wait in images/ and videos/; recording and detection never notice
    the disk fills               the oldest videos make room, each with a warning; alerts go on
    the clock is wrong or jumps  durations never notice; events wait for the clock to be set and are then dated
    the power goes               the clip loses less than a second, and the next start finishes and uploads it
    this loop hangs              it is ended with a stack dump after LOOP_STALL_S, and launch.sh starts it again

Configure it by editing the constants below. README.md explains each; the parts are in guardianberry/.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from guardianberry.logs import formatter
from guardianberry.settings import find_problems

# ---- Events: when a recording starts and how long it lasts
MAX_RECORDING_DURATION_S = 20  # of video in all, pre-roll included; longer clips reach S3 later on a slow uplink
MIN_GAP_BETWEEN_VIDEO_START_S = 60  # from start to start: one alert a minute is enough to act on
PERSON_GONE_AFTER_S = 2  # people are lost for a second when they turn or bend; 0 stops at the first frame without one
PRE_ROLL_S = 3  # video from before the detection: how the person came in; kept in memory, 0.25 MB a second
DETECTIONS_TO_START = 2  # looks with a person; 1 makes each flicker an event, 3 is a frame later
DETECTION_WINDOW_LOOKS = 3  # of the last so many: one miss between them is forgiven

# ---- Detector: YOLOv5, people only
WEIGHTS = "yolov5n.pt"  # in models/: an official YOLOv5 checkpoint, fetched once where it is missing
CONF_THRES = 0.255  # 0 to 1; below it a shadow is a person, above it a person in the dark is none
IOU_THRES = 0.45  # 0 to 1; boxes that overlap more are one person
MAX_DET = 1000  # people in one frame; a bound, not a setting
MAX_BLIND_S = 1  # where nothing moves, a look this often finds who stands still; 10 is cooler and finds them later
DETECTOR_INPUT_WIDTH_PX = 416  # 640 costs 2.3 times as much, sees 1.5 times as far, and takes some cars for people

# ---- Camera
FRAME_WIDTH_PX = 640  # what is recorded; more costs bytes and decoding, the detector's input stays the same
FRAME_HEIGHT_PX = 480  # 4:3 is the sensor's own shape; 16:9 cuts off above and below
FRAME_RATE_FPS = 10  # enough to see what a person does; each frame more costs detection time and bytes
KEY_FRAME_INTERVAL_FRAMES = FRAME_RATE_FPS  # a key frame a second: clips can begin only there
BITRATE_BPS = 2_000_000  # 5 MB a clip; VC4's own default of 10 Mbit/s would be 25 MB
CAMERA_STALL_S = 5  # without a byte: the camera hangs (rpicam-vid never gives up by itself) and is started again
STREAM_URL = "tcp://127.0.0.1:8888"  # a stream started by hand is read from here; nothing ever listens here itself

# ---- Files and buckets
VIDEOS_BUCKET = "guardianberry.videos"  # names are unique in all of AWS: put yours here
IMAGES_BUCKET = "guardianberry.images"  # never the same one: alerts hang on each new object here
SERVER_SIDE_ENCRYPTION = "AES256"  # None for S3 servers that know no encryption
JPEG_QUALITY = 85  # 1 to 100; 50 to 80 kB a picture, so that it is through a 300 kbit/s uplink in 2 s

# ---- Disk, clock and watchdog
MIN_FREE_DISK_BYTES = 500_000_000  # below it the oldest videos go, un-uploaded; a full SD card breaks the whole system
CLOCK_WAIT_S = 120  # after the boot; events wait this long for NTP to set the clock, then take it as it is
CLOCK_SYNC_FILE = ""  # a file whose existence says that the clock is set; empty: ask systemd-timesyncd or the kernel
LOOP_TICK_S = 0.5  # the loop comes round this often even without a frame
LOOP_STALL_S = 60  # the loop has hung in native code: well above the slowest honest pass, a camera restart (3 s)

HERE = Path(__file__).resolve().parent
DEMO_GAP_S = 10  # in place of MIN_GAP_BETWEEN_VIDEO_START_S: nobody wants to watch a minute of empty room
EXIT_CANNOT_RUN = 1  # now: another one runs, no weights; launch.sh tries again, with longer and longer pauses
EXIT_NEEDS_EDITING = 2  # launch.sh does not try again: only an edit of this file helps

log = logging.getLogger("guardianberry")


def run(folder: Path, stop: threading.Event, *, demo: bool = False) -> None:
    """Guard until `stop` is set. Files go to `folder`/videos and `folder`/images, which exist and are ours alone."""
    from guardianberry.camera.supervisor import Camera
    from guardianberry.detection.detector import Detector
    from guardianberry.detection.motion import MotionGate
    from guardianberry.detection.weights import find_graph
    from guardianberry.machine import get_rpi_serial_number
    from guardianberry.recording.clock import Clock, marker_exists, system_clock_is_synchronised
    from guardianberry.recording.events import EventFiles
    from guardianberry.recording.recorder import Inference, Recorder, Start, Stop
    from guardianberry.recording.retention import Disk
    from guardianberry.summary import DailySummary
    from guardianberry.upload.uploader import Uploader

    detector = Detector(
        find_graph(WEIGHTS, HERE / "models", stop=stop),
        frame_width_px=FRAME_WIDTH_PX,
        frame_height_px=FRAME_HEIGHT_PX,
        input_width_px=DETECTOR_INPUT_WIDTH_PX,
        conf_thres=CONF_THRES,
        iou_thres=IOU_THRES,
        max_det=MAX_DET,
    )
    clock = Clock(
        wait_s=0 if demo else CLOCK_WAIT_S,
        is_synchronised=marker_exists(CLOCK_SYNC_FILE) if CLOCK_SYNC_FILE else system_clock_is_synchronised,
    )
    images, videos = folder / "images", folder / "videos"
    uploader = Uploader(
        images_folder=images,
        videos_folder=videos,
        images_bucket=IMAGES_BUCKET,
        videos_bucket=VIDEOS_BUCKET,
        server_side_encryption=SERVER_SIDE_ENCRYPTION,
        rpi_serial_no=get_rpi_serial_number(),
        video_metadata={
            "model": detector.model_name,
            "frame_rate": str(FRAME_RATE_FPS),
            "confidence_threshold": str(CONF_THRES),
        },
        may_upload=clock.is_set,
    )
    disk = Disk(folder=folder, images_folder=images, videos_folder=videos, min_free_bytes=MIN_FREE_DISK_BYTES)
    events = EventFiles(
        images_folder=images,
        videos_folder=videos,
        clock=clock,
        disk=disk,
        uploads=uploader,
        max_recording_duration_s=MAX_RECORDING_DURATION_S,
        frame_rate_fps=FRAME_RATE_FPS,
        jpeg_quality=JPEG_QUALITY,
    )
    recorder = Recorder(
        min_gap_between_video_start_s=DEMO_GAP_S if demo else MIN_GAP_BETWEEN_VIDEO_START_S,
        person_gone_after_s=PERSON_GONE_AFTER_S,
        detections_to_start=DETECTIONS_TO_START,
        detection_window_looks=DETECTION_WINDOW_LOOKS,
    )
    camera = Camera(
        width_px=FRAME_WIDTH_PX,
        height_px=FRAME_HEIGHT_PX,
        frame_rate_fps=FRAME_RATE_FPS,
        bitrate_bps=BITRATE_BPS,
        stream_url=STREAM_URL,
        pre_roll_s=PRE_ROLL_S,
        wait_for_other_users=not demo,  # a demo leaves the camera alone, so it need not wait for it
    )
    gate = MotionGate(inference_at_least_every_s=MAX_BLIND_S)
    summary = DailySummary(folder, uploader, clock.monotonic())
    events.recover()
    uploader.start()
    last_number = -1
    while not stop.is_set():
        # Check health: the loop's own, the camera's, the clip's (is there still video for it?), the clock's, the disk's
        faulthandler.dump_traceback_later(LOOP_STALL_S, exit=True)
        camera.check_and_launch_libcamera()
        if (reason := events.clip_end_reason) and (stopped := recorder.end(clock.monotonic(), reason)):
            events.stop(stopped)
        events.release_held()
        disk.make_room()
        summary.log_if_due(clock.monotonic(), events=events.started, relaunches=camera.relaunches)

        # Wait: for a frame that has not been looked at yet
        frame = camera.newest_frame(timeout_s=LOOP_TICK_S, after_number=last_number, stop=stop)
        if frame is None:
            continue
        last_number = frame.number

        # Detect: where something moves, at every frame while a person is seen, and every MAX_BLIND_S anyhow
        attentive = recorder.recording or recorder.suspects
        if not gate.needs_inference(frame.luma(), frame.arrival_s, attentive=attentive):
            log.debug("frame %d: nothing moves", frame.number)
            continue
        people = detector.find_people(frame.bgr)
        inference = Inference(
            frame.arrival_s, [person.confidence for person in people], detector.last_ms, frame, people
        )
        log.debug("frame %d: %d person(s), %.0f ms", frame.number, len(people), detector.last_ms)

        # Decide
        action = recorder.step(inference)

        # Act
        if isinstance(action, Start):
            events.start(action.first, camera.open_tap(action.first.time_s), recorder.facts())
        elif isinstance(action, Stop):
            events.stop(action)
        elif recorder.recording:
            events.note(recorder.facts())

    # Asked to stop: within 5 s, without waiting for the network
    if stopped := recorder.end(clock.monotonic(), "the daemon was asked to stop"):
        events.stop(stopped)
    camera.stop()
    events.close(timeout_s=1.0)
    uploader.stop(timeout_s=0.5)
    faulthandler.cancel_dump_traceback_later()


def guard(folder: Path, stop: threading.Event, *, demo: bool = False) -> int:
    """Make the folders, make sure that no other daemon has them, and run; the exit code."""
    from guardianberry.detection.weights import WeightsError
    from guardianberry.machine import FolderError, lock_folder, make_private_folder, use_one_malloc_arena

    use_one_malloc_arena()
    try:
        for name in ("videos", "images"):
            make_private_folder(folder / name)
        lock = lock_folder(folder)
        run(folder, stop, demo=demo)
        os.close(lock)
    except (FolderError, WeightsError) as error:
        if not stop.is_set():  # else asked to stop while the weights were still on their way
            log.error("%s", error)
            return EXIT_CANNOT_RUN
    log.info("stopped as asked")
    return 0


def main() -> int:
    # launch.sh must know the options that end by themselves, so they are not to be abbreviated.
    parser = argparse.ArgumentParser(
        description="Guards a room with a Raspberry Pi camera. Settings: top of this file.", allow_abbrev=False
    )
    parser.add_argument("--check", action="store_true", help="say what works here and what does not, and end")
    parser.add_argument("--upload", action="store_true", help="with --check: also put a tiny object into each bucket")
    parser.add_argument("--demo", nargs="?", const="", metavar="VIDEO", help="a video file in place of the camera")
    parser.add_argument("-v", dest="verbose", action="store_true", help="log each frame")
    options = parser.parse_args()
    if options.upload and not options.check:
        parser.error("--upload goes with --check only")

    os.umask(0o077)  # whatever this process writes is for its owner alone
    if options.check:
        from guardianberry.doctor.page import examine

        return examine(HERE, globals(), upload=options.upload)
    set_up_logging(verbose=options.verbose)
    if problems := find_problems(globals()):
        for advice in problems:
            log.error("%s (top of %s)", advice, Path(__file__).name)
        return EXIT_NEEDS_EDITING
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if options.demo is None:
        return guard(HERE, stop)
    from guardianberry.demo import staged

    with staged(HERE, options.demo, stop) as folder:
        return guard(folder, stop, demo=True)


def set_up_logging(*, verbose: bool) -> None:
    """To stderr, a line an event. Only our own loggers: botocore's debug lines would show signatures."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter())
    logging.getLogger().addHandler(handler)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
