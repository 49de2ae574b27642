#!/usr/bin/env python3
"""What 1, 100 and 10,000 cameras do to AWS: prints the table in README.md as Markdown.

Change a number below and run it again. Nothing here is asked of AWS: limits are quoted from its documents, prices
are list prices without free tier or volume discount (but for SNS's, which are part of its price).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

CAMERAS = (1, 100, 10_000)
DAYS_PER_MONTH = 30
SECONDS_PER_DAY = 86_400

# --- Your cameras -----------------------------------------------------------------------------------------------------
EVENTS_PER_CAMERA_PER_DAY = 50  # a guess: a front door on a quiet street
MIN_GAP_BETWEEN_VIDEO_START_S = 60  # as in detect_and_upload.py: no camera makes more than one event in this time
VIDEO_BYTES = 20 * 2_000_000 // 8  # MAX_RECORDING_DURATION_S at 2 Mbit/s
IMAGE_BYTES = 100_000  # a 640x480 JPEG is smaller
LIVE_PARTS_PER_EVENT = 10  # LIVE_UPLOAD: the clip's bytes once more, while it is recorded
LIVE_DAYS = 2  # the stack's lifecycle rule
HEARTBEAT_S = 300  # as the stack's README says; 0 in detect_and_upload.py is off
HEARTBEAT_BYTES = 500
EXPIRE_AFTER_DAYS = 90  # the stack's default

# --- AWS's limits (the document each is from is named in README.md) ---------------------------------------------------
S3_PUTS_PER_S = 3_500  # per prefix; our keys have no prefix in common, S3 splits them further when it has to
IAM_USERS_PER_ACCOUNT = 5_000  # cannot be raised
STACK_RESOURCES = 500
STACK_PARAMETER_BYTES = 4_096
SNS_EMAILS_PER_S = 10  # cannot be raised
ROLES_ANYWHERE_LOGINS_PER_S = 10  # can be raised

# --- What follows from our own template and from boto3 ----------------------------------------------------------------
OTHER_STACK_RESOURCES = 27  # all but the users
WATCH_EVERY_S = 5 * 60
WATCH_CAMERAS = 500  # MAX_CAMERAS in watch.py
DEVICE_NAME_BYTES = 12  # "front-door-2"
LOGIN_EVERY_S = 45 * 60  # boto3 renews keys that last an hour 15 minutes before they end
MAIL_GB_S = 0.5 * 1.0  # memory times a guess of the time that one alert takes
WATCH_GB_S = 0.25 * 1.0  # one run, and for each camera a LIST more
WATCH_GB_S_PER_CAMERA = 0.25 * 0.03
THIEF_BPS = 100_000_000  # a stolen key's uplink

# --- List prices in USD, us-east-1, June 2026 -------------------------------------------------------------------------
PRICE_PER_PUT = 0.005 / 1_000
PRICE_PER_LIST = 0.005 / 1_000
PRICE_PER_HEAD = 0.0004 / 1_000
PRICE_PER_LAMBDA_RUN = 0.20 / 1_000_000
PRICE_PER_LAMBDA_GB_S = 0.0000133334  # arm64
PRICE_PER_GB_MONTH = 0.023  # S3 Standard, first 50 TB
PRICE_PER_EMAIL = 2.00 / 100_000
FREE_EMAILS_PER_MONTH = 1_000
PRICE_PER_SNS_MESSAGE = 0.50 / 1_000_000
FREE_SNS_MESSAGES_PER_MONTH = 1_000_000


PUTS_PER_EVENT = 3 + LIVE_PARTS_PER_EVENT  # the image, the clip, the best picture


@dataclass(frozen=True)
class Fleet:
    cameras: int

    @property
    def events_per_day(self) -> int:
        return self.cameras * EVENTS_PER_CAMERA_PER_DAY

    @property
    def events_per_s_at_most(self) -> float:
        return self.cameras / MIN_GAP_BETWEEN_VIDEO_START_S

    @property
    def puts_per_s(self) -> float:
        return PUTS_PER_EVENT * self.events_per_day / SECONDS_PER_DAY + self.cameras / HEARTBEAT_S

    @property
    def puts_per_s_at_most(self) -> float:
        return PUTS_PER_EVENT * self.events_per_s_at_most + self.cameras / HEARTBEAT_S

    @property
    def users_fit(self) -> bool:
        return self.cameras <= IAM_USERS_PER_ACCOUNT

    @property
    def stacks(self) -> int:
        return -(-self.cameras // cameras_per_stack())

    @property
    def logins_per_s(self) -> float:
        return self.cameras / LOGIN_EVERY_S

    @property
    def emails_per_month(self) -> int:
        return self.events_per_day * DAYS_PER_MONTH

    @property
    def stored_gb(self) -> float:
        return self.events_per_day * EXPIRE_AFTER_DAYS * (VIDEO_BYTES + 2 * IMAGE_BYTES) / 1e9

    @property
    def storage_usd(self) -> float:
        return self.stored_gb * PRICE_PER_GB_MONTH

    @property
    def puts_usd(self) -> float:
        return 3 * self.events_per_day * DAYS_PER_MONTH * PRICE_PER_PUT

    @property
    def live_usd(self) -> float:
        puts = self.events_per_day * DAYS_PER_MONTH * LIVE_PARTS_PER_EVENT * PRICE_PER_PUT
        return puts + self.events_per_day * LIVE_DAYS * VIDEO_BYTES / 1e9 * PRICE_PER_GB_MONTH

    @property
    def heartbeats_usd(self) -> float:
        a_day = self.cameras * SECONDS_PER_DAY / HEARTBEAT_S
        return a_day * DAYS_PER_MONTH * PRICE_PER_PUT + a_day * LIVE_DAYS * HEARTBEAT_BYTES / 1e9 * PRICE_PER_GB_MONTH

    @property
    def watch_usd(self) -> float:
        """Its LISTs are told/, alive/ and one a camera."""
        cameras = min(self.cameras, WATCH_CAMERAS)
        gb_s = WATCH_GB_S + WATCH_GB_S_PER_CAMERA * cameras
        a_run = (2 + cameras) * PRICE_PER_LIST + PRICE_PER_LAMBDA_RUN + gb_s * PRICE_PER_LAMBDA_GB_S
        return a_run * DAYS_PER_MONTH * SECONDS_PER_DAY / WATCH_EVERY_S

    @property
    def alerts_usd(self) -> float:
        """S3's message to the function, the function, its HeadObject, and its mail by the second topic."""
        alerts = self.emails_per_month
        emails = max(0, alerts - FREE_EMAILS_PER_MONTH) * PRICE_PER_EMAIL
        messages = max(0, 2 * alerts - FREE_SNS_MESSAGES_PER_MONTH) * PRICE_PER_SNS_MESSAGE
        runs = alerts * (PRICE_PER_LAMBDA_RUN + MAIL_GB_S * PRICE_PER_LAMBDA_GB_S + PRICE_PER_HEAD)
        return emails + messages + runs

    @property
    def usd(self) -> float:
        together = self.storage_usd + self.puts_usd + self.live_usd
        return together + self.heartbeats_usd + self.watch_usd + self.alerts_usd


def thief_gb_per_day() -> float:
    return THIEF_BPS / 8 * SECONDS_PER_DAY / 1e9


def cameras_per_stack() -> int:
    """How many names fit into the DeviceNames parameter, and their users into the stack."""
    names = (STACK_PARAMETER_BYTES + 1) // (DEVICE_NAME_BYTES + 1)
    return min(names, STACK_RESOURCES - OTHER_STACK_RESOURCES)


def number(value: float) -> str:
    """Three significant digits for small values, whole numbers with commas for large ones."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def of_limit(value: float, limit: float) -> str:
    return f"{number(value)}{' **too many**' if value > limit else ''}"


ROWS: tuple[tuple[str, Callable[[Fleet], str]], ...] = (
    ("**Load**", lambda _fleet: ""),
    (f"events a day ({EVENTS_PER_CAMERA_PER_DAY} a camera)", lambda fleet: number(fleet.events_per_day)),
    ("uploads a second, on average", lambda fleet: number(fleet.puts_per_s)),
    (
        f"uploads a second, an event every {MIN_GAP_BETWEEN_VIDEO_START_S} s everywhere (S3: {S3_PUTS_PER_S:,})",
        lambda fleet: of_limit(fleet.puts_per_s_at_most, S3_PUTS_PER_S),
    ),
    (
        "all cameras alarmed in the same second: S3 has taken the images after",
        lambda fleet: f"{max(1, fleet.cameras / S3_PUTS_PER_S):.2g} s",
    ),
    ("**Keys**", lambda _fleet: ""),
    (
        f"users, one a camera (IAM: {IAM_USERS_PER_ACCOUNT:,})",
        lambda fleet: of_limit(fleet.cameras, IAM_USERS_PER_ACCOUNT),
    ),
    (
        f"stacks for these users ({cameras_per_stack()} a stack)",
        lambda fleet: number(fleet.stacks) if fleet.users_fit else "use certificates",
    ),
    (
        f"certificate log-ins a second (Roles Anywhere: {ROLES_ANYWHERE_LOGINS_PER_S})",
        lambda fleet: of_limit(fleet.logins_per_s, ROLES_ANYWHERE_LOGINS_PER_S),
    ),
    ("**Alerts**", lambda _fleet: ""),
    ("e-mails a day to one topic", lambda fleet: number(fleet.events_per_day)),
    (
        f"e-mails a second, an event every {MIN_GAP_BETWEEN_VIDEO_START_S} s everywhere (SNS: {SNS_EMAILS_PER_S})",
        lambda fleet: of_limit(fleet.events_per_s_at_most, SNS_EMAILS_PER_S),
    ),
    (
        f"cameras whose silence is told (one watch: {WATCH_CAMERAS})",
        lambda fleet: of_limit(fleet.cameras, WATCH_CAMERAS),
    ),
    ("**USD a month**", lambda _fleet: ""),
    (f"stored after {EXPIRE_AFTER_DAYS} days, GB", lambda fleet: number(fleet.stored_gb)),
    ("storage", lambda fleet: f"{fleet.storage_usd:,.2f}"),
    ("uploads", lambda fleet: f"{fleet.puts_usd:,.2f}"),
    ("parts of clips while they are recorded", lambda fleet: f"{fleet.live_usd:,.2f}"),
    (f"heartbeats every {HEARTBEAT_S} s", lambda fleet: f"{fleet.heartbeats_usd:,.2f}"),
    ("the watch", lambda fleet: f"{fleet.watch_usd:,.2f}"),
    ("alerts by e-mail", lambda fleet: f"{fleet.alerts_usd:,.2f}"),
    ("together", lambda fleet: f"{fleet.usd:,.2f}"),
    ("together, a camera", lambda fleet: f"{fleet.usd / fleet.cameras:,.2f}"),
    ("**A stolen key**, uploading for a day", lambda _fleet: ""),
    (f"at {THIEF_BPS // 1_000_000} Mbit/s: GB", lambda _fleet: number(thief_gb_per_day())),
    ("its storage, USD a month until you delete it", lambda _fleet: f"{thief_gb_per_day() * PRICE_PER_GB_MONTH:,.2f}"),
)


def table() -> str:
    fleets = [Fleet(cameras) for cameras in CAMERAS]
    lines = ["| cameras | " + " | ".join(f"{fleet.cameras:,}" for fleet in fleets) + " |"]
    lines.append("|---|" + "---:|" * len(fleets))
    lines += [" | ".join([f"| {name}", *(cell(fleet) for fleet in fleets)]) + " |" for name, cell in ROWS]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
