"""The state machine: tables of looks and what must come of them, and properties over any sequence of looks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardianberry.recording.recorder import Inference, Recorder, Start, Stop


def make(**changes) -> Recorder:
    settings = {
        "max_recording_duration_s": 20,
        "min_gap_between_video_start_s": 60,
        "person_gone_after_s": 2,
        "detections_to_start": 1,
        "detection_window_looks": 3,
    }
    return Recorder(**(settings | changes))


def play(recorder: Recorder, looks, *, pre_roll_s: float = 0) -> list[tuple[float, str]]:
    """Feed (time, number of people) pairs; the times and kinds of the actions that came."""
    actions = []
    for time_s, people in looks:
        action = recorder.step(Inference(time_s, [0.5] * people, 10.0), clip_start_s=time_s - pre_roll_s)
        if action:
            actions.append((time_s, type(action).__name__))
    return actions


def seconds(pattern: str, *, start: float = 0) -> list[tuple[float, int]]:
    """One look a second: "." sees nobody, a digit that many people."""
    return [(start + i, 0 if c == "." else int(c)) for i, c in enumerate(pattern)]


@pytest.mark.parametrize(
    ("settings", "pattern", "expected"),
    [
        ({}, "....", []),
        ({}, "..1", [(2, "Start")]),
        ({}, "..111...", [(2, "Start"), (6, "Stop")]),
        ({"person_gone_after_s": 0}, "..111.", [(2, "Start"), (5, "Stop")]),
        ({}, "1.1.1.1.1", [(0, "Start")]),  # a person lost for a look is not gone
        ({}, "1" * 30, [(0, "Start"), (20, "Stop")]),
        ({}, "1" * 70, [(0, "Start"), (20, "Stop"), (60, "Start")]),
        ({}, "1...." + "." * 20 + "1" * 10, [(0, "Start"), (2, "Stop")]),  # the gap counts from the start
        (
            {"min_gap_between_video_start_s": 25},
            "1...." + "." * 20 + "1" * 2,
            [(0, "Start"), (2, "Stop"), (25, "Start")],
        ),
        ({"detections_to_start": 2}, "1..1..1..", []),  # two of the last three
        ({"detections_to_start": 2}, "1.1", [(2, "Start")]),
        ({"detections_to_start": 2}, "..11", [(3, "Start")]),
        ({"detections_to_start": 3}, "11.1111", [(5, "Start")]),
    ],
)
def test_what_is_decided(settings, pattern, expected):
    assert play(make(**settings), seconds(pattern)) == expected


def test_the_pre_roll_counts_towards_the_clips_length():
    assert play(make(), seconds("1" * 30), pre_roll_s=4) == [(0, "Start"), (16, "Stop")]


def test_the_alert_shows_the_first_of_the_detections_that_made_the_event():
    recorder = make(detections_to_start=2)
    first = Inference(0.0, [0.4], frame="first frame", people="its people")
    recorder.step(first, clip_start_s=0)
    start = recorder.step(Inference(0.1, [0.9]), clip_start_s=0)
    assert isinstance(start, Start)
    assert start.first is first


def test_a_sighting_from_long_ago_does_not_count():
    """The camera was away between the two: the first picture is no alert any more."""
    assert play(make(detections_to_start=2), [(0, 1), (30, 1)]) == []
    assert play(make(detections_to_start=2), [(0, 1), (30, 1), (30.1, 1)]) == [(30.1, "Start")]


def test_facts_are_those_of_the_whole_event():
    recorder = make(detections_to_start=2)
    for time_s, confidences, inference_ms in [
        (0, [0.3], 10),
        (1, [0.5, 0.4], 30),
        (2, [0.91], 20),
        (3, [], 40),
        (4, [], 50),
    ]:
        action = recorder.step(Inference(time_s, confidences, inference_ms), clip_start_s=0)
    assert isinstance(action, Stop)
    assert (action.facts.max_people_found, action.facts.max_confidence, action.facts.inference_time_ms) == (2, 91, 30)


def test_losing_the_camera_ends_the_event_and_forgets_the_window():
    recorder = make(detections_to_start=2)
    assert recorder.end(0, "no camera") is None
    play(recorder, [(0, 1)])
    recorder.end(0.5, "no camera")
    assert play(recorder, [(1, 1)]) == []
    assert play(recorder, [(2, 1)]) == [(2, "Start")]
    stop = recorder.end(3, "no camera")
    assert isinstance(stop, Stop)
    assert (stop.time_s, stop.reason) == (3, "no camera")
    assert not recorder.recording


def test_suspicion_lasts_from_a_first_sighting_until_it_is_settled():
    recorder = make(detections_to_start=2)
    states = []
    for time_s, people in seconds("..1...1.1"):
        recorder.step(Inference(time_s, [0.5] * people), clip_start_s=time_s)
        states.append(recorder.suspects)
    assert states == [False, False, True, True, True, False, True, True, False]


looks = st.lists(st.tuples(st.floats(0.01, 15), st.integers(0, 3)), max_size=200)


@given(looks, st.integers(1, 3), st.floats(0, 5), st.floats(0, 4))
def test_no_sequence_of_looks_breaks_the_rules(steps, detections_to_start, person_gone_after_s, pre_roll_s):
    recorder = make(detections_to_start=detections_to_start, person_gone_after_s=person_gone_after_s)
    now_s, started_s, last_start_s = 0.0, None, None
    for gap_s, people in steps:
        now_s += gap_s
        action = recorder.step(Inference(now_s, [0.5] * people), clip_start_s=now_s - pre_roll_s)
        if isinstance(action, Start):
            assert started_s is None, "clips overlap"
            assert people, "started without a person"
            assert last_start_s is None or now_s - last_start_s >= 60
            started_s = last_start_s = now_s
        elif isinstance(action, Stop):
            assert started_s is not None, "stopped what was not started"
            started_s = None
        elif started_s is not None:
            assert now_s - (started_s - pre_roll_s) < 20, "goes on past its full length"
        assert recorder.recording == (started_s is not None)
