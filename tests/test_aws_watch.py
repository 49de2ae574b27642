"""aws/watch.py: silence is told once, and so is its end; the template's own text under a clock of the test's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests import aws_rig
from tests.aws_cli import AwsCli
from tests.aws_functions import Stack
from tests.aws_policies import UPLOAD, allowed_of_all, is_allowed, role_statements, template_resources
from tests.aws_rig import IMAGES, REGION, ROOT, VIDEOS, Moto, readme_commands, run_commands

# Fixtures
moto_process = aws_rig.moto_process

PROGRAM = ROOT / "aws" / "watch.py"
MINUTE_S, DAY_S = 60, 86_400
# As the daemon writes it.
HEARTBEAT = {
    "camera_name": "Front door",
    "time": 0,
    "waiting_images": 0,
    "waiting_videos": 0,
    "oldest_waiting_s": None,
    "free_disk_bytes": 12_000_000_000,
    "events_today": 2,
    "worst_alert_latency_s": 0.153,
    "camera_relaunches": 0,
    "throttled": "",
    "armed": True,
    "dark_since": None,
}


@pytest.fixture(scope="module")
def deployed_stack(moto_process: Moto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The README's ten minutes, once for all tests here."""
    folder = tmp_path_factory.mktemp("owner")
    (folder / "home").mkdir()
    deploy = readme_commands("Ten minutes").partition("aws iam create-access-key")[0]
    with AwsCli(folder / "cli", endpoint_url=moto_process.url, home=folder / "home", region=REGION) as cli:
        run_commands(deploy, cli)
    yield Stack(moto_process)
    moto_process.reset()


class Watched:
    """The videos bucket and the watch, with a clock that is moved by hand and begins ten days ago.

    S3's own clock is moto's, the real one: it has heartbeats later than their names say, which makes them no younger.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack, self._s3 = stack, stack.moto.service("s3")
        self.now_s = int(time.time()) - 10 * DAY_S

    def beat(self, camera: str = "front-door", *, at_s: float | None = None, **fields: Any) -> None:
        now_s = int(self.now_s if at_s is None else at_s)
        body = json.dumps({**HEARTBEAT, "time": now_s, **fields}).encode()
        self.stack.put(VIDEOS, f"alive/{camera}/{now_s}", body)

    def forget(self, prefix: str) -> None:
        """As the lifecycle rule does."""
        keys = [{"Key": key} for key in self.stack.moto.keys(VIDEOS) if key.startswith(prefix)]
        if keys:
            self._s3.delete_objects(Bucket=VIDEOS, Delete={"Objects": keys})

    def mails(self, *, after_min: float = 0, weekly: bool = False) -> list[tuple[str, str]]:
        """What one run mails, so many minutes after the last one."""
        event = {"weekly": True} if weekly else {"source": "aws.events", "detail-type": "Scheduled Event"}
        self.now_s += int(after_min * MINUTE_S)
        self.stack.call("Watch", event, now_s=self.now_s)
        return [(mail["Subject"], mail["Message"]) for mail in self.stack.people.take()]

    def told(self) -> list[str]:
        return sorted(key for key in self.stack.moto.keys(VIDEOS) if key.startswith("told/"))


@pytest.fixture
def watched(deployed_stack: Stack) -> Watched:
    deployed_stack.clear()
    watched = Watched(deployed_stack)
    watched.forget("")
    return watched


def test_the_text_in_the_template_is_the_file() -> None:
    assert template_resources()["Watch"]["Properties"]["Code"]["ZipFile"] == PROGRAM.read_text()


def test_sixteen_minutes_of_silence_are_told_once_and_so_is_its_end(watched: Watched) -> None:
    watched.beat()
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(watched.now_s))
    assert watched.mails() == []
    assert watched.mails(after_min=14) == []
    [(subject, body)] = watched.mails(after_min=2)
    assert subject == f"Front door: silent since {since}"
    assert "no power, no network, or hangs" in body
    for after_min in (5, 5, 60, 3 * 24 * 60):
        assert watched.mails(after_min=after_min) == []
    watched.beat()
    assert [subject for subject, _ in watched.mails(after_min=1)] == ["Front door: back"]
    assert watched.mails(after_min=5) == []
    assert len(watched.mails(after_min=10)) == 1, "silent again"


def test_a_gap_of_ten_minutes_is_not_told(watched: Watched) -> None:
    for gap_min in (5, 5, 10, 5, 10, 10):
        watched.beat()
        assert [watched.mails(after_min=gap_min / 2) for _ in range(2)] == [[], []]


def test_a_hung_camera_is_told_by_the_heartbeats_that_do_not_come(watched: Watched) -> None:
    """The other camera goes on: its heartbeats are nobody else's."""
    told = []
    for minutes in range(0, 30, 5):
        watched.beat("garage", camera_name="Garage")
        if minutes < 10:
            watched.beat("front-door")
        told += watched.mails(after_min=5)
    [(subject, _)] = told
    assert subject.startswith("Front door: silent since ")


def test_it_is_told_that_a_camera_is_back_whose_heartbeats_have_long_gone(watched: Watched) -> None:
    watched.beat()
    assert len(watched.mails(after_min=16)) == 1
    assert watched.mails(after_min=3 * 24 * 60) == []
    watched.forget("alive/")
    assert watched.mails() == []
    watched.beat()
    assert [subject for subject, _ in watched.mails(after_min=1)] == ["Front door: back"]


def test_several_at_once_are_one_mail(watched: Watched) -> None:
    for number in range(5):
        watched.beat(f"camera-{number:02}", camera_name="x" * 90)
    [(subject, body)] = watched.mails(after_min=16)
    assert len(subject) < 100
    assert body.count("silent since") == 5
    assert watched.mails(after_min=5) == []


def test_what_it_told_is_never_written_over_and_a_lost_mail_is_tried_again(watched: Watched) -> None:
    watched.beat()
    watched.mails()
    assert len(watched.told()) == 1
    before = watched.told()
    with pytest.raises(Exception, match=r"NotFound|InvalidParameter|does not exist"):
        watched.stack.call("Watch", {}, now_s=watched.now_s + 16 * MINUTE_S, MAIL_TOPIC="arn:aws:sns:x:1:none")
    assert watched.told() == before
    assert len(watched.mails(after_min=17)) == 1
    assert watched.told()[:1] == before
    assert [key.rpartition("-")[2] for key in watched.told()] == ["alive", "silent"]


# ---- A stolen key writes under alive/ --------------------------------------------------------------------------------


def test_no_name_makes_a_camera_look_alive_for_longer_than_s3_says(watched: Watched) -> None:
    watched.now_s = int(time.time())
    watched.beat(at_s=watched.now_s + DAY_S)
    watched.beat(at_s=9_999_999_999)
    assert watched.mails() == []
    assert len(watched.mails(after_min=16)) == 1


JUNK = [
    "alive/front-door",
    "alive/front-door/",
    "alive/front-door/soon",
    "alive/front-door/17000000001",
    "alive/front-door/x/9999999999",
    "alive/front-door/9999999999.jpg",
    "alive//9999999999",
    "alive/" + "x" * 65 + "/9999999999",
    "alive/..%2f/9999999999",
    "alive/a Subject: forged/9999999999",
    "alive/<script>/9999999999",
]


def test_junk_neither_stops_it_nor_is_a_camera(watched: Watched) -> None:
    for key in JUNK:
        watched.stack.put(VIDEOS, key, b"junk")
    watched.beat()
    [(subject, body)] = watched.mails(after_min=16)
    assert subject.startswith("Front door: silent since ")
    assert body.count(": silent") == 1
    assert [key.split("/")[1] for key in watched.told()] == ["front-door"]


BODIES = [
    b"",
    b"[" * 5000,
    b'{"camera_name": {"a": [1]}, "free_disk_bytes": NaN, "worst_alert_latency_s": -1, "oldest_waiting_s": 1e400}',
    b'"a string"',
    b'{"camera_name": "x\\r\\nhttp://evil.example <b>", "throttled": ["x"], "waiting_images": "many", "dark_since": 5}',
    b"\xff\xfe\x00",
    b'{"camera_name": "' + b"y" * 5000 + b'"}',
    b'{"waiting_images": ' + b"9" * 4090 + b"}",
]


@pytest.mark.parametrize("weekly", [False, True])
def test_hostile_heartbeats_make_no_line_and_no_link(watched: Watched, *, weekly: bool) -> None:
    for number, body in enumerate(BODIES):
        watched.stack.put(VIDEOS, f"alive/camera-{number}/{watched.now_s}", body)
    watched.mails()
    [(subject, body)] = watched.mails(after_min=16, weekly=weekly)
    assert subject.isprintable()
    assert len(subject) < 100
    assert not set("<>") & set(body)
    assert "://" not in body
    about = [line for line in body.splitlines() if line.startswith(("camera-", "x http"))]
    assert len(about) == len(BODIES)


def test_heaps_of_junk_are_not_read_to_the_end(watched: Watched) -> None:
    """A run that does not end tells nobody anything. This is a false alarm, which the thief's junk costs."""
    for number in range(20):
        watched.stack.put(VIDEOS, f"alive/front-door/{watched.now_s - MINUTE_S}-{number}", b"junk")
    watched.beat()
    assert watched.mails() == []
    watched.forget("told/")
    watched.stack.call("Watch", {}, now_s=watched.now_s, constants={"MAX_HEARTBEATS": 10})
    [mail] = watched.stack.people.take()
    assert mail["Subject"].startswith("front-door: silent")


def test_invented_cameras_do_not_crowd_out_real_ones(watched: Watched) -> None:
    watched.beat("z")
    watched.mails()
    for number in range(12):
        watched.beat(f"a-{number:02}")
    few = {"MAX_CAMERAS": 10}
    watched.stack.call("Watch", {}, now_s=watched.now_s, constants=few)
    assert len(watched.told()) == 10
    watched.forget("alive/a-")
    watched.stack.call("Watch", {}, now_s=watched.now_s + 16 * MINUTE_S, constants=few)
    [mail] = watched.stack.people.take()
    assert "Front door: silent since" in mail["Message"]


# ---- Once a week -----------------------------------------------------------------------------------------------------


def test_the_weekly_mail(watched: Watched) -> None:
    watched.beat("front-door", worst_alert_latency_s=0.41, at_s=watched.now_s - DAY_S)
    watched.beat("front-door", worst_alert_latency_s=0.15)
    watched.beat("garage", camera_name="Garage", worst_alert_latency_s=None)
    for number in range(3):
        watched.stack.put(VIDEOS, f"{number}.mp4")
    for other in ("live/e/0001.part", "best/e.jpg", "live/x.mp4", "x.txt"):
        watched.stack.put(VIDEOS, other)
    [(subject, body)] = watched.mails(weekly=True)
    assert subject == "all well: 3 events, 2 cameras, worst alert 0.4 s, oldest waiting file none"
    assert "Front door: well. 0 images and 0 videos queued." in body
    assert watched.mails(weekly=True, after_min=5)[0][0] == subject, "each Monday, whatever was told"
    watched.now_s = int(time.time())  # S3's time is what counts clips
    [(subject, _)] = watched.mails(weekly=True, after_min=8 * 24 * 60)
    assert subject.startswith("NOT WELL (2): 0 events, 2 cameras, ")


@pytest.mark.parametrize(
    ("fields", "sign"),
    [
        ({"oldest_waiting_s": 7500, "waiting_images": 1, "waiting_videos": 2}, "files queued for more than an hour"),
        ({"free_disk_bytes": 600_000_000}, "card nearly full"),
        ({"throttled": "under-voltage"}, "too little power or too hot"),
        ({"dark_since": 1795378445}, "DARK"),
    ],
)
def test_the_weekly_mail_says_what_is_not_well(watched: Watched, fields: dict[str, Any], sign: str) -> None:
    watched.beat(**fields)
    [(subject, body)] = watched.mails(weekly=True)
    assert subject.startswith("NOT WELL (1): 0 events, 1 camera, ")
    assert f"Front door: {sign}." in body
    assert subject.endswith("oldest waiting file 2.1 h" if "oldest_waiting_s" in fields else "file none")


def test_without_heartbeats_the_weekly_mail_says_so(watched: Watched) -> None:
    assert watched.mails() == []
    [(subject, body)] = watched.mails(weekly=True)
    assert subject.startswith("NO HEARTBEATS: 0 events, 0 cameras")
    assert "HEARTBEAT_S = 300" in body


# ---- The schedule, the role, the command -----------------------------------------------------------------------------


def test_it_is_run_every_five_minutes_and_on_mondays() -> None:
    resources = template_resources()
    often, weekly = (resources[name]["Properties"] for name in ("WatchEvery5Minutes", "WatchWeekly"))
    assert often["ScheduleExpression"] == "rate(5 minutes)"
    assert [target["Arn"] for target in often["Targets"] + weekly["Targets"]] == ["arn of Watch"] * 2
    assert "Input" not in often["Targets"][0]
    assert json.loads(weekly["Targets"][0]["Input"]) == {"weekly": True}
    for name in ("WatchEvery5Minutes", "WatchWeekly"):
        permission = resources[f"{name}Permission"]["Properties"]
        assert (permission["Principal"], permission["SourceArn"]) == ("events.amazonaws.com", f"arn of {name}")


def test_of_all_the_actions_that_aws_has_the_watchs_role_is_allowed_these() -> None:
    bucket, images, log = f"arn:aws:s3:::{VIDEOS}", f"arn:aws:s3:::{IMAGES}", "arn of WatchLog"
    objects = [
        f"{bucket}/{key}" for key in ("k.mp4", "alive/c/1700000000", "live/e/0001.part", "told/c/1700000000-silent")
    ]
    resources = (bucket, images, *objects, f"{images}/k.jpg", "mail-topic", "topic", log, "*")
    allowed = allowed_of_all(role_statements("WatchRole"), resources, UPLOAD)
    assert allowed == {
        ("s3:listbucket", bucket),
        ("s3:getobject", objects[1]),
        ("s3:putobject", objects[3]),
        ("sns:publish", "mail-topic"),
        ("logs:createlogstream", log),
        ("logs:putlogevents", log),
    }
    overwrite = {**UPLOAD, "s3:if-none-match": ""}
    assert not is_allowed(role_statements("WatchRole"), "s3:PutObject", objects[3], overwrite)


def test_as_a_command_it_prints_the_mail(watched: Watched) -> None:
    watched.beat(at_s=watched.now_s - 16 * MINUTE_S)
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **watched.stack.moto.environment()}
    outs = [
        subprocess.run(
            [sys.executable, str(PROGRAM), *arguments],
            env={**environment, "VIDEOS_BUCKET": VIDEOS},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for arguments in ([], ["weekly"])
    ]
    assert outs[0].startswith("Subject: Front door: silent since ")
    assert outs[1].startswith("Subject: NOT WELL (1): 0 events, 1 camera, ")
