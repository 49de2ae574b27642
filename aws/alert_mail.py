"""From S3's message to a mail for people; also a command: alert_mail.py BUCKET KEY. Metadata is not trusted."""

import json
import os
import re
import sys
import urllib.request
from datetime import UTC, datetime
from http.client import HTTPException
from urllib.parse import quote, unquote_plus

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

TOPIC, PUSH_URL, VIDEOS = map(os.environ.get, ("MAIL_TOPIC", "PUSH_URL", "VIDEOS_BUCKET"))
CONFIG = Config(signature_version="s3v4", s3={"addressing_style": "path"}, connect_timeout=2, read_timeout=4)


def handler(event, _context=None):
    try:
        for record in event["Records"]:
            if "Sns" in record:
                handler(json.loads(record["Sns"]["Message"]))
                continue
            bucket, key = record["s3"]["bucket"]["name"], unquote_plus(record["s3"]["object"]["key"])
            if bucket != VIDEOS or re.fullmatch(r"[^/]+\.mp4", key):
                tell(bucket, key)
    except (AttributeError, KeyError, TypeError, ValueError):
        send("GuardianBerry: S3 sent a test or odd message", words(json.dumps(event), 999))


def tell(bucket, key):
    s3, data, link, clip = boto3.client("s3", config=CONFIG), {}, "", key.endswith(".mp4")
    try:
        asked = {"Bucket": bucket, "Key": key}
        shown = asked | {"ResponseContentType": "video/mp4" if clip else "image/jpeg"}  # never a web page
        link = s3.generate_presigned_url("get_object", shown, 12 * 3600)
        data = {k.replace("-", "_"): v for k, v in s3.head_object(**asked)["Metadata"].items()}  # Ceph writes "-"
    except (BotoCoreError, ClientError) as error:
        print("no metadata:", type(error).__name__)
    name = words(data.get("camera_name", "")) or "camera " + (words(data.get("rpi_serial_no", ""))[-4:] or "?")
    sure, took_ms = number(data, "max_confidence" if clip else "confidence"), number(data, "alert_latency_ms")
    what = "clip" if clip else "person" if sure else "picture" if sure is None else "VIEW LOST"
    at = moment(data)
    title = ", ".join(filter(None, [f"{name}: {what}", sure and f"{sure} %", at and f"{at:%H:%M}"]))
    lines = [title, what == "VIEW LOST" and "Covered, turned or out of focus: no person is in the picture."]
    lines += [at and f"Time: {at:%F %T %Z}", took_ms is not None and f"Upload began {took_ms / 1000} s after the frame"]
    title, text = title.encode("ascii", "replace").decode(), "\n".join(filter(None, lines))
    links = f"\n\nFor 12 hours or less (until its signer's session ends):\n{link}"
    page = f"https://console.aws.amazon.com/s3/object/{bucket}?region={s3.meta.region_name}&prefix={quote(key, '')}"
    links += f"\n\nLasting, with an AWS log-in:\n{page}" if TOPIC else ""
    send(title, text + links)
    push(title, text, {"Attach": link, "Filename": "clip.mp4" if clip else "alert.jpg"} if link else {})


def words(text, most=40):
    """Nothing that makes a line, a header or a link."""
    return " ".join(re.sub(r"[^\w '()&+-]", " ", text[:9999]).split())[:most]


def number(data, name):
    text = data.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,10}", text) else None


def moment(data):
    try:
        return datetime.fromisoformat(data.get("local_time", ""))
    except ValueError:
        start_s = number(data, "recording_start_time")
        return start_s and datetime.fromtimestamp(start_s, UTC)


def send(title, body):
    if TOPIC:
        both = json.dumps({"default": body, "sms": title})
        boto3.client("sns").publish(TopicArn=TOPIC, Subject=title, Message=both, MessageStructure="json")
    else:
        print(f"Subject: {title}\n\n{body}")


def push(title, text, headers):
    try:
        if PUSH_URL:
            request = urllib.request.Request(PUSH_URL, text.encode(), {"Title": title} | headers)
            urllib.request.urlopen(request, timeout=5).close()
    except (OSError, HTTPException, ValueError) as error:
        print("push failed:", type(error).__name__)


if __name__ == "__main__":
    tell(*sys.argv[1:])
