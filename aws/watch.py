#!/usr/bin/env python3
"""Mails once when a camera falls silent, once when it is back, and once a week how all cameras are.

Every five minutes it lists alive/ (heartbeats) and told/ (what it has mailed) in the videos bucket. As a command:
`watch.py`, and `watch.py weekly`, with VIDEOS_BUCKET in the environment; without MAIL_TOPIC the mail goes to stdout.
What lies under alive/ is the word of whoever has a camera's key. Cameras cannot write told/.
"""

import json
import os
import re
import sys
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError

BUCKET, TOPIC = os.environ["VIDEOS_BUCKET"], os.environ.get("MAIL_TOPIC")
SILENT_S = 60 * int(os.environ.get("SILENT_MINUTES") or 15)
WEEK_S = 7 * 86_400

# Above them a weekly mail is no longer "all well".
MIN_FREE_DISK_BYTES = 1e9
MAX_OLDEST_WAITING_S = 3600

# Bounds for what a stolen key can write: whatever lies there, a run must end within the function's time.
MAX_CAMERAS = 500  # each costs a LIST; the ones that are known already stay
MAX_LISTED = 100_000
MAX_HEARTBEATS = 5_000  # of a camera: three days of one a minute
MAX_HEARTBEAT_BYTES = 4096
HEARTBEATS_READ = 12  # of each camera, for the weekly mail

CAMERA = "[A-Za-z0-9_-]{1,64}"
S3 = boto3.client("s3")


def handler(event, _context=None):
    now_s = int(time.time())
    told = {}  # camera: "alive" or "silent", as it was told last, or "new"
    for key, _ in listed("told/"):  # in the order of their times
        if found := re.fullmatch(f"told/({CAMERA})/[0-9]{{10}}-(alive|silent)", key):
            told[found[1]] = found[2]
    for prefix, _ in listed("alive/", Delimiter="/"):
        found = re.fullmatch(f"alive/({CAMERA})/", prefix)
        if found and len(told) < MAX_CAMERAS:
            told.setdefault(found[1], "new")
    alive = {camera for camera in told if heartbeats(camera, now_s - SILENT_S)}
    if event.get("weekly"):
        tell_how_all_are(told, alive, now_s)
    else:
        tell_changes(told, alive, now_s)


def tell_changes(told, alive, now_s):
    """One mail for all changes of this run. A new camera that is alive is no news, and is remembered."""
    changed, lines = {}, []
    for camera, before in told.items():
        now = "alive" if camera in alive else "silent"
        if now == before:
            continue
        changed[camera] = now
        if (before, now) != ("new", "alive"):
            kept = heartbeats(camera)
            what = "back" if now == "alive" else f"silent since {clock(kept[-1][0])}" if kept else "silent"
            lines.append(f"{name_of(camera, kept)}: {what}")
    if lines:
        send("; ".join(lines), "\n".join(lines) + "\n\nA silent camera has no power, no network, or hangs.")
    # After the mail: it may come twice, and is never lost.
    for camera, now in changed.items():
        S3.put_object(Bucket=BUCKET, Key=f"told/{camera}/{now_s}-{now}", IfNoneMatch="*")


def tell_how_all_are(told, alive, now_s):
    worst_s, oldest_s, lines, bad = [], [], [], 0
    for camera in told:
        kept = heartbeats(camera)
        # Counters begin anew at the camera's midnight, so the worst alert is looked for in all days that are kept.
        some = [said(key) for _, key in kept[:: len(kept) // HEARTBEATS_READ + 1] + kept[-1:]] or [{}]
        last = some[-1]
        worst_s += [number(one, "worst_alert_latency_s", 0) for one in some]
        oldest_s.append(number(last, "oldest_waiting_s", 0))
        troubles = {
            "SILENT": camera not in alive,
            "DARK": last.get("dark_since") is not None,
            "card nearly full": number(last, "free_disk_bytes", MIN_FREE_DISK_BYTES) < MIN_FREE_DISK_BYTES,
            "files queued for more than an hour": oldest_s[-1] > MAX_OLDEST_WAITING_S,
            "too little power or too hot": bool(last.get("throttled")),
        }
        trouble = ", ".join(word for word, there in troubles.items() if there)
        bad += bool(trouble)
        images, videos = number(last, "waiting_images", 0), number(last, "waiting_videos", 0)
        duty = " Off duty." if last.get("armed") is False else ""
        lines.append(f"{name_of(camera, kept)}: {trouble or 'well'}. {images} images and {videos} videos queued.{duty}")
    events = sum(
        bool(re.fullmatch(r"[^/]+\.mp4", key)) and at_s > now_s - WEEK_S for key, at_s in listed("", Delimiter="/")
    )
    title = "NO HEARTBEATS" if not told else f"NOT WELL ({bad})" if bad else "all well"
    oldest = f"{max(oldest_s) / 3600:.1f} h" if any(oldest_s) else "none"
    title += f": {count(events, 'event')}, {count(len(told), 'camera')}, worst alert {max(worst_s, default=0):.1f} s"
    lines += ["", "Events: clips that arrived in 7 days. Worst alert: in the heartbeats that are kept, 2 to 3 days."]
    lines += [] if told else ["No camera sends heartbeats: set HEARTBEAT_S = 300 at the top of detect_and_upload.py."]
    send(f"{title}, oldest waiting file {oldest}", "\n".join(lines))


def listed(prefix, most=MAX_LISTED, **more):
    """(key, seconds when S3 got it) of the objects, then (prefix, 0) of what lies deeper."""
    limit = {"MaxItems": most}
    for page in S3.get_paginator("list_objects_v2").paginate(
        Bucket=BUCKET, Prefix=prefix, PaginationConfig=limit, **more
    ):
        yield from ((one["Key"], one["LastModified"].timestamp()) for one in page.get("Contents", []))
        yield from ((one["Prefix"], 0) for one in page.get("CommonPrefixes", []))


def heartbeats(camera, since_s=0):
    """(seconds, key), oldest first. A name can make a heartbeat older than S3 says, never newer."""
    prefix = f"alive/{camera}/"
    found = [
        (min(int(key[len(prefix) :]), at_s), key)
        for key, at_s in listed(prefix, MAX_HEARTBEATS, StartAfter=f"{prefix}{since_s}")
        if re.fullmatch("[0-9]{10}", key[len(prefix) :])
    ]
    return sorted(one for one in found if one[0] >= since_s)


def said(key):
    """A heartbeat's fields; none where it cannot be read."""
    try:
        part = f"bytes=0-{MAX_HEARTBEAT_BYTES - 1}"
        fields = json.loads(S3.get_object(Bucket=BUCKET, Key=key, Range=part)["Body"].read())
    except (BotoCoreError, ClientError, ValueError, RecursionError) as error:
        print("a heartbeat cannot be read:", type(error).__name__)
        return {}
    return fields if isinstance(fields, dict) else {}


def number(fields, field, otherwise):
    value = fields.get(field)
    return value if type(value) in (int, float) and 0 <= value < 1e15 else otherwise


def name_of(camera, kept):
    """The newest heartbeat's camera_name, without what could make a line or a link."""
    text = said(kept[-1][1]).get("camera_name") if kept else ""
    return " ".join(re.sub(r"[^\w '()&+-]", " ", text if isinstance(text, str) else "").split())[:40] or camera


def clock(at_s):
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_s))


def count(number_of, thing):
    return f"{number_of} {thing}" + ("" if number_of == 1 else "s")


def send(title, body):
    title = title.encode("ascii", "replace").decode()[:99]
    if TOPIC:
        boto3.client("sns").publish(TopicArn=TOPIC, Subject=title, Message=body)
    else:
        print(f"Subject: {title}\n\n{body}")


if __name__ == "__main__":
    handler({"weekly": sys.argv[1:] == ["weekly"]})
