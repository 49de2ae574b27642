"""Which objects are of one event, and where a camera was silent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from viewer.archive import Archive
from viewer.fetching import SILENCE_S
from viewer.objects import Facts, Name, Role, beat_of
from viewer.parts import contains, join, supersede

MOST_EVENTS = 20_000  # on one page, the newest
_UNDER_WAY_S = 120  # a part this young may be followed by others

WHOLE, PICTURE, UNFINISHED, UNDER_WAY = "whole", "picture", "unfinished", "under way"


@dataclass
class Event:
    """What the page shows of one event; paths are relative to the folder."""

    id: str
    start: int  # Unix seconds of the first detection
    offset_min: int | None  # of the camera's local time to UTC
    camera: str
    people: int | None
    confidence: int | None  # per cent
    duration_s: int | None
    state: str
    clip: str = ""
    pictures: list[str] = field(default_factory=list)  # the cover first


@dataclass
class Gap:
    """No heartbeat from `start` to `end`, or until now where `end` is None."""

    camera: str
    start: int
    end: int | None


@dataclass
class _Group:
    """The objects of one event that are in the folder."""

    id: str
    images: list[Name] = field(default_factory=list)
    clips: list[Name] = field(default_factory=list)
    best: list[Name] = field(default_factory=list)
    parts: list[Name] = field(default_factory=list)
    stills: list[Name] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)  # the clip's first

    def add(self, name: Name) -> None:
        lists = {
            Role.IMAGE: self.images,
            Role.CLIP: self.clips,
            Role.BEST: self.best,
            Role.PART: self.parts,
            Role.STILL: self.stills,
        }
        lists[name.role].append(name)


def events_and_gaps(archive: Archive, *, now_s: int) -> tuple[list[Event], list[Gap]]:
    """Newest first. Joins parts on the way."""
    events = [event for group in _groups(archive) for event in _events(archive, group, now_s=now_s)]
    events.sort(key=lambda event: (-event.start, event.id))
    gaps, names = [], _camera_names(archive)
    for key, beats in archive.heartbeats.items():
        camera = names.get(key, key)
        gaps += [Gap(camera, start, end) for start, end in beats.gaps]
        if now_s - beats.last > SILENCE_S:
            gaps.append(Gap(camera, beats.last, None))
    return events[:MOST_EVENTS], gaps


def _camera_names(archive: Archive) -> dict[str, str]:
    """By what their heartbeats are called: the newest name that an event tells."""
    told = sorted(
        (item.modified, item.facts.serial, item.facts.camera) for item in archive.items.values() if item.facts
    )
    return {beat_of(serial): camera or serial[-4:] for _, serial, camera in told if serial}


def _groups(archive: Archive) -> list[_Group]:
    """By event UUID, or by serial number and start where there is none.

    An event has one image and one clip, the first that arrived. What else claims to be of it stands by itself: whoever
    has the camera's key can add to what is shown, but not put something in its place.
    """
    groups: dict[str, _Group] = {}
    by_start: dict[tuple[str, int], _Group] = {}
    by_arrival = sorted(archive.items.items(), key=lambda pair: (pair[1].modified, pair[0]))
    for name, item in sorted(by_arrival, key=lambda pair: not (pair[1].facts and pair[1].facts.event)):
        facts, serial_and_start = item.facts, (item.facts.serial, item.facts.start) if item.facts else ("", 0)
        is_own = name.role in (Role.IMAGE, Role.CLIP)  # its key is no event's
        if is_own and facts is None:
            continue
        event = (facts.event if facts else "") if is_own else name.uuid
        alone = f"{name.role}-{name.uuid}"  # no event's id, whatever UUID somebody chose
        group = groups.get(event) if event else by_start.get(serial_and_start)
        if group and ((name.role is Role.IMAGE and group.images) or (name.role is Role.CLIP and group.clips)):
            group = groups[alone] = _Group(alone)
        if group is None:
            group = groups[event or alone] = _Group(event or alone)
            if is_own and serial_and_start[0]:
                by_start.setdefault(serial_and_start, group)
        if facts:
            group.facts.insert(0 if name.role is Role.CLIP else len(group.facts), facts)
        if archive.has(name):
            group.add(name)
    return list(groups.values())


def _events(archive: Archive, group: _Group, *, now_s: int) -> Iterator[Event]:
    """One, or none where nothing can be shown; two where a clip has come that lacks what the parts showed."""
    if not group.facts:
        return
    joined = join(archive, group.id, group.parts) if group.parts else None
    pictures = [name.file for name in (*group.best, *group.images)]
    stills = [name.file for name in sorted(group.stills, reverse=True)]
    if group.clips:
        yield _event(group, WHOLE, clip=group.clips[0].file, pictures=pictures)
        if joined is None or contains(archive.path(group.clips[0]), joined):
            supersede(archive, group.id, group.parts)
            return
    if joined or stills:
        newest = max(archive.items[name].modified for name in (*group.parts, *group.stills))
        state = UNDER_WAY if now_s - newest < _UNDER_WAY_S and not group.clips else UNFINISHED
        clip = joined.relative_to(archive.folder).as_posix() if joined else ""
        yield _event(group, state, clip=clip, pictures=[*pictures, *stills], suffix="-parts" if group.clips else "")
    elif pictures and not group.clips:
        yield _event(group, PICTURE, pictures=pictures)


def _event(group: _Group, state: str, *, pictures: list[str], clip: str = "", suffix: str = "") -> Event:
    facts = group.facts
    confidences = [each.confidence for each in facts if each.confidence is not None]
    serial = next((each.serial for each in facts if each.serial), "")
    return Event(
        id=group.id + suffix,
        start=facts[0].start,
        offset_min=next((each.offset_min for each in facts if each.offset_min is not None), None),
        camera=next((each.camera for each in facts if each.camera), serial[-4:] or "?"),
        people=next((each.people for each in facts if each.people is not None), None),
        confidence=max(confidences, default=None),
        duration_s=facts[0].duration_s if state == WHOLE else None,
        state=state,
        clip=clip,
        pictures=pictures,
    )
