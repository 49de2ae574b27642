"""A fleet: the arithmetic in aws/README.md, and fifty devices at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import detect_and_upload
from aws import fleet
from tests.aws_cli import expand_for_each
from tests.aws_rig import ROOT, TEMPLATE, jpeg, mp4
from tests.s3_server import S3Server

DEVICES, EVENTS = 50, 1
VIDEOS, IMAGES = "fleet-videos", "fleet-images"


def test_the_table_in_the_readme_is_the_scripts() -> None:
    command = [sys.executable, str(ROOT / "aws" / "fleet.py")]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    readme = (ROOT / "aws" / "README.md").read_text()
    assert readme.split("<!-- fleet -->\n")[1].split("<!-- end of fleet -->")[0] == printed


def test_the_inputs_are_the_daemons_and_the_templates() -> None:
    assert fleet.MIN_GAP_BETWEEN_VIDEO_START_S == detect_and_upload.MIN_GAP_BETWEEN_VIDEO_START_S
    longest_clip_bytes = detect_and_upload.MAX_RECORDING_DURATION_S * detect_and_upload.BITRATE_BPS // 8
    assert fleet.VIDEO_BYTES == longest_clip_bytes
    template = expand_for_each(TEMPLATE, {"DeviceNames": "a,b,c"})
    assert fleet.EXPIRE_AFTER_DAYS == template["Parameters"]["ExpireAfterDays"]["Default"]
    resources = template["Resources"]
    rules = resources["Videos"]["Properties"]["LifecycleConfiguration"]["Rules"]
    assert [fleet.LIVE_DAYS] == [rule["ExpirationInDays"] for rule in rules if rule.get("Prefix") == "live/"]
    every = resources["WatchEvery5Minutes"]["Properties"]["ScheduleExpression"]
    assert every == f"rate({fleet.WATCH_EVERY_S // 60} minutes)"
    memory_gb = {name: resources[name]["Properties"]["MemorySize"] / 1024 for name in ("AlertMail", "Watch")}
    assert (fleet.MAIL_GB_S, fleet.WATCH_GB_S) == (memory_gb["AlertMail"] * 1.0, memory_gb["Watch"] * 1.0)
    assert f"MAX_CAMERAS = {fleet.WATCH_CAMERAS} " in (ROOT / "aws" / "watch.py").read_text()
    assert f"HEARTBEAT_S = {fleet.HEARTBEAT_S}" in (ROOT / "aws" / "README.md").read_text()
    assert fleet.OTHER_STACK_RESOURCES == len(template["Resources"]) - 3


def test_the_arithmetic() -> None:
    """By hand: 100 cameras x 50 events, each a 5 MB clip and two 0.1 MB images, kept for 90 days."""
    hundred = fleet.Fleet(100)
    assert hundred.events_per_day == 5_000
    assert hundred.puts_per_s_at_most == pytest.approx(100 * 13 / 60 + 100 / 300)
    assert hundred.stored_gb == pytest.approx(5_000 * 90 * 5.2 / 1000)
    assert hundred.storage_usd == pytest.approx(2_340 * 0.023)
    assert hundred.puts_usd == pytest.approx(450_000 * 0.000005)
    assert hundred.live_usd == pytest.approx(1_500_000 * 0.000005 + 5_000 * 2 * 0.005 * 0.023)
    assert hundred.heartbeats_usd == pytest.approx(864_000 * 0.000005, rel=0.001)
    runs, gb_s = 30 * 288, 0.25 * (1 + 100 * 0.03)
    assert hundred.watch_usd == pytest.approx(runs * (102 * 0.000005 + 0.0000002 + gb_s * 0.0000133334))
    # 150,000 e-mails, of which 1,000 are free; of 300,000 messages all are; a HeadObject and half a GB-second each.
    assert hundred.alerts_usd == pytest.approx(
        149_000 * 0.00002 + 150_000 * (0.0000002 + 0.5 * 0.0000133334 + 0.0000004)
    )
    assert fleet.Fleet(5_000).users_fit
    assert not fleet.Fleet(5_001).users_fit
    assert fleet.Fleet(316).stacks == 2
    assert len(",".join(["x" * fleet.DEVICE_NAME_BYTES] * fleet.cameras_per_stack())) <= fleet.STACK_PARAMETER_BYTES


# Fifty uploaders in one process: each has its own folders, serial number, connections and threads.
_DEVICES = """
import sys, time
from pathlib import Path
from guardianberry.upload.uploader import Uploader
root, videos_bucket, images_bucket = Path(sys.argv[1]), *sys.argv[2:]
uploaders = [
    Uploader(
        images_folder=device / "images", videos_folder=device / "videos", images_bucket=images_bucket,
        videos_bucket=videos_bucket, server_side_encryption="AES256", rpi_serial_no=device.name,
        video_metadata={"model": "yolov5n.pt", "frame_rate": "10", "confidence_threshold": "0.255"},
    )
    for device in sorted(root.iterdir())
]
for uploader in uploaders:
    uploader.start()
deadline_s = time.monotonic() + 120
while any(sum(uploader.pending()[:2]) for uploader in uploaders) and time.monotonic() < deadline_s:
    time.sleep(0.1)
for uploader in uploaders:
    uploader.stop(5)
counters = [uploader.counters() for uploader in uploaders]
sys.stdout.write(f"{sum(one.images for one in counters)} {sum(one.videos for one in counters)}")
"""


@pytest.mark.slow
def test_fifty_devices_into_one_bucket_and_nothing_mixed_up(tmp_path: Path) -> None:
    expected_images, expected_videos = set(), set()
    for number in range(DEVICES):
        serial = f"{0x10000000DEAD0000 + number:016x}"
        for folder in ("images", "videos"):
            (tmp_path / serial / folder).mkdir(parents=True)
        for event in range(EVENTS):
            start = 1_700_000_000 + 60 * event  # the same second on every device
            image, video = jpeg(f"{serial} image {event}"), mp4(f"{serial} video {event}")
            (tmp_path / serial / "images" / f"{start}-87-640-480.jpg").write_bytes(image)
            (tmp_path / serial / "videos" / f"{start}-20-1-87-130-640-480.mp4").write_bytes(video)
            expected_images.add((serial, str(start), image))
            expected_videos.add((serial, str(start), video))
    with S3Server() as s3:
        s3.create_bucket(VIDEOS, IMAGES)
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **s3.environment()}
        command = [sys.executable, "-c", _DEVICES, str(tmp_path), VIDEOS, IMAGES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{DEVICES * EVENTS} {DEVICES * EVENTS}", done.stderr
        for bucket, expected in ((IMAGES, expected_images), (VIDEOS, expected_videos)):
            stored = s3.objects(bucket)
            assert len(stored) == DEVICES * EVENTS
            found = {(one.metadata["rpi_serial_no"], one.metadata["recording_start_time"], one.body) for one in stored}
            assert found == expected
    assert not [path for path in tmp_path.glob("*/*/*") if path.is_file()]
