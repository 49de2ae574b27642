"""Fills the folder: lists both buckets, asks HeadObject for unknown keys only, and downloads what is new.

All is remembered at once, so that a run that was stopped goes on where it was and a second run asks nothing twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TypeVar

from viewer.archive import Archive, ContentError, Heartbeats, Item
from viewer.objects import IMAGES, MOST_BYTES, VIDEOS, Name, Role, parse_beat, parse_key, read_facts
from viewer.stores import CONNECTIONS, Entry, ObjectError, Store

MOST_KEYS = 200_000  # of one bucket; a year of 500 events a day. Who has the camera's key could add millions
MOST_OBJECTS = 60_000  # of events: the newest
SILENCE_S = 15 * 60  # without a heartbeat
_MOST_CAMERAS = 100
_MOST_GAPS = 1000  # of one camera
_BEATS_KEPT_S = 2 * 24 * 3600  # the buckets drop heartbeats after two days: what is not listed then says nothing
# A clip is in its bucket soon after its last part. One that comes later was finished by the next start of the camera,
# or was made by a thief who has the key: then the parts are fetched, too, and must be in it.
_LATE_CLIP_S = 300
_OF_EVENTS = {Role.BEST, Role.PART, Role.STILL}  # their keys hold the event's UUID
_ORDER = {Role.IMAGE: 0, Role.BEST: 0, Role.STILL: 1, Role.PART: 2, Role.CLIP: 3}

_T = TypeVar("_T")
# What is being done, and how many bytes or objects that is; answers with what to call for each bit of progress.
Progress = Callable[[str, int, str], contextlib.AbstractContextManager[Callable[[int], object]]]


@dataclass
class Report:
    """What one run did."""

    asked: int = 0  # HeadObject
    fetched: int = 0
    fetched_bytes: int = 0
    failed: int = 0  # to be tried again
    reason: str = ""  # of the last of them
    notes: list[str] = field(default_factory=list)  # for the owner


def fetch(store: Store, archive: Archive, *, days: float, now_s: int, progress: Progress | None = None) -> Report:
    """Objects that arrived in the last `days` and are not in the folder yet. Raises StoreError and ArchiveError."""
    report, run = Report(), _Run(store, archive, progress or _no_progress)
    run.look(since_s=now_s - days * 86400, now_s=now_s, report=report)
    run.ask(_unknown(archive, run.entries, {Role.IMAGE, Role.CLIP}), report)
    run.ask(_first_of_unknown_events(archive, run.entries), report)
    archive.save_index()
    run.download(_wanted(archive, run.entries), report)
    return report


class _Run:
    def __init__(self, store: Store, archive: Archive, progress: Progress) -> None:
        self._store = store
        self._archive = archive
        self._progress = progress
        self.entries: dict[Name, Entry] = {}

    def look(self, *, since_s: float, now_s: int, report: Report) -> None:
        """Note what is in the buckets: new objects since `since_s`, and heartbeats."""
        beats: dict[str, list[int]] = {}
        odd = large = 0
        found: list[tuple[Name, Entry]] = []
        for entry in self._all_entries(report):
            name = parse_key(entry.bucket, entry.key)
            if name is None:
                camera = parse_beat(entry.key) if entry.bucket == VIDEOS else None
                if camera is not None:
                    beats.setdefault(camera, []).append(entry.modified)
                odd += camera is None and not entry.key.startswith("told/")
            elif entry.size > MOST_BYTES[name.role]:
                large += 1
            elif entry.modified >= since_s:
                found.append((name, entry))
        found.sort(key=lambda pair: -pair[1].modified)
        for name, entry in found[:MOST_OBJECTS]:
            self.entries[name] = entry
            known = self._archive.items.get(name)
            if known is None or (known.size, known.modified) != (entry.size, entry.modified):
                self._archive.items[name] = Item(entry.size, entry.modified)
        for count, text in (
            (odd, "have names that no event has"),
            (large, "are larger than any event's"),
            (len(found) - MOST_OBJECTS, f"are older than the {MOST_OBJECTS} newest"),
        ):
            if count > 0:
                report.notes.append(f"{count} object(s) in the buckets {text}; they are left alone")
        _note_heartbeats(self._archive.heartbeats, beats, now_s=now_s)

    def _all_entries(self, report: Report) -> Iterator[Entry]:
        for bucket in (IMAGES, VIDEOS):
            entries = self._store.entries(bucket)
            yield from islice(entries, MOST_KEYS)
            if next(entries, None) is not None:
                report.notes.append(f"the {bucket} bucket holds more than {MOST_KEYS} objects: the rest was not seen")

    def ask(self, names: list[Name], report: Report) -> None:
        """HeadObject."""
        items = self._archive.items
        for name, told in self._each("asking", names, "objects", lambda name: self._metadata(name), report):
            items[name].facts = read_facts(told, modified=items[name].modified)
            report.asked += 1

    def _metadata(self, name: Name) -> dict[str, str]:
        return self._store.metadata(self.entries[name])

    def download(self, names: list[Name], report: Report) -> None:
        for name, refused in self._each("fetching", names, "B", self._store_body, report):
            self._archive.items[name].refused = refused
            if refused:
                report.notes.append(f"{self.entries[name].key} is not shown: {refused}")
            else:
                report.fetched += 1
                report.fetched_bytes += self._archive.items[name].size

    def _store_body(self, name: Name) -> str:
        try:
            self._archive.store(name, self._store.read(self.entries[name]))
        except ContentError as error:
            return str(error)
        return ""

    def _each(
        self, what: str, names: list[Name], unit: str, work: Callable[[Name], _T], report: Report
    ) -> Iterator[tuple[Name, _T]]:
        """Work on all, some at a time. An error that is not one object's own ends it."""
        if not names:
            return
        sizes = {name: self._archive.items[name].size if unit == "B" else 1 for name in names}
        with self._progress(what, sum(sizes.values()), unit) as advance, ThreadPoolExecutor(CONNECTIONS) as pool:
            try:
                futures = {pool.submit(work, name): name for name in names}
                for future in as_completed(futures):
                    name = futures[future]
                    advance(sizes[name])
                    try:
                        yield name, future.result()
                    except ObjectError as error:
                        report.failed, report.reason = report.failed + 1, str(error)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _no_progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    yield lambda count: None


def _unknown(archive: Archive, names: Iterable[Name], roles: set[Role]) -> list[Name]:
    return [name for name in names if name.role in roles and archive.items[name].facts is None]


def _first_of_unknown_events(archive: Archive, names: Iterable[Name]) -> list[Name]:
    """One object of each event of which neither image nor clip has arrived: the first one."""
    known = {item.facts.event for item in archive.items.values() if item.facts}
    asked = {name.uuid for name, item in archive.items.items() if name.role in _OF_EVENTS and item.facts}
    first: dict[str, Name] = {}
    for name in sorted(names):
        if name.role in _OF_EVENTS and name.uuid not in known | asked:
            first.setdefault(name.uuid, name)
    return list(first.values())


def _wanted(archive: Archive, names: Iterable[Name]) -> list[Name]:
    """What is to be downloaded: small things first, newest first."""
    late: dict[str, int] = {}  # of each finished event: from when on its clip would be late
    finished: dict[str, int] = {}
    for name, item in archive.items.items():
        if name.role is Role.CLIP and item.facts and item.facts.event and not item.refused:
            finished[item.facts.event] = min(item.modified, finished.get(item.facts.event, item.modified))
        elif name.role is Role.PART:
            late[name.uuid] = max(item.modified + _LATE_CLIP_S, late.get(name.uuid, 0))

    def is_wanted(name: Name) -> bool:
        if archive.items[name].refused or archive.has(name):
            return False
        arrived = finished.get(name.uuid) if name.role in (Role.PART, Role.STILL) else None
        return arrived is None or (name.role is Role.PART and arrived > late[name.uuid])

    wanted = [name for name in names if is_wanted(name)]
    return sorted(wanted, key=lambda name: (_ORDER[name.role], -archive.items[name].modified))


def _note_heartbeats(known: dict[str, Heartbeats], beats: dict[str, list[int]], *, now_s: int) -> None:
    """Add the silences between heartbeats, as far as the bucket can still tell.

    A heartbeat's time is that of its arrival: a thief with the key can write any time into its name.
    """
    for camera, listed in beats.items():
        if camera not in known and len(known) >= _MOST_CAMERAS:
            continue
        of_camera = known.setdefault(camera, Heartbeats())
        times = sorted({*listed, of_camera.last})
        for earlier, later in pairwise(times):
            is_new = (earlier, later) not in of_camera.gaps
            if later - earlier > SILENCE_S and earlier >= now_s - _BEATS_KEPT_S and is_new:
                of_camera.gaps.append((earlier, later))
        of_camera.gaps = of_camera.gaps[-_MOST_GAPS:]
        of_camera.last = times[-1]
