"""The state machine: tables of inferences and the actions that must follow, and properties over any sequence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardianberry.recording.recorder import Inference, Recorder, Start, Stop


def make(**changes) -> Recorder:
    settings = {
        "min_gap_between_video_start_s": 60,
        "person_gone_after_s": 2,
        "detections_to_start": 1,
    }
    return Recorder(**(settings | changes))


def play(recorder: Recorder, inferences) -> list[tuple[float, str]]:
    """Feed (time, number of people) pairs; the times and kinds of the actions that came."""
    actions = []
    for time_s, people in inferences:
        action = recorder.step(Inference(time_s, [0.5] * people, 10.0))
        if action:
            actions.append((time_s, type(action).__name__))
    return actions


def seconds(pattern: str, *, start: float = 0) -> list[tuple[float, int]]:
    """One inference a second: "." finds nobody, a digit that many people."""
    return [(start + i, 0 if c == "." else int(c)) for i, c in enumerate(pattern)]


@pytest.mark.parametrize(
    ("settings", "pattern", "expected"),
    [
        ({}, "....", []),
        ({}, "..1", [(2, "Start")]),
        ({}, "..111...", [(2, "Start"), (6, "Stop")]),
        ({"person_gone_after_s": 0}, "..111.", [(2, "Start"), (5, "Stop")]),
        ({}, "1.1.1.1.1", [(0, "Start")]),  # a person missed once is not gone
        ({}, "1" * 30, [(0, "Start")]),  # as long as the clip takes video
        (
            {},
            "1...." + "." * 20 + "1" * 10,
            [(0, "Start"), (2, "Stop"), (25, "Alert")],
        ),  # the gap counts from the start
        (
            {"min_gap_between_video_start_s": 25},
            "1...." + "." * 20 + "1" * 2,
            [(0, "Start"), (2, "Stop"), (25, "Start")],
        ),
        ({"detections_to_start": 2}, "1..1..1..", []),  # two of the last three
        ({"detections_to_start": 2}, "1.1", [(2, "Start")]),
        ({"detections_to_start": 2}, "..11", [(3, "Start")]),
        ({"detections_to_start": 3}, "11..111.", [(6, "Start")]),
        # Somebody new within the gap: an image alone, one in 10 s, and a clip when the gap is over.
        ({}, "1...." + "." * 20 + "11...", [(0, "Start"), (2, "Stop"), (25, "Alert")]),
        ({}, "1....11...", [(0, "Start"), (2, "Stop")]),  # within 10 s of the last alert, and gone again
        ({}, "1....111111", [(0, "Start"), (2, "Stop"), (10, "Alert")]),  # still there when the 10 s are over
        ({}, "1..11..11..11..11..11..11", [(0, "Start"), (2, "Stop"), (11, "Alert"), (23, "Alert")]),
        ({}, "1...." + "." * 50 + "1" * 10, [(0, "Start"), (2, "Stop"), (55, "Alert"), (60, "Start")]),
        ({}, "1" * 8 + "...11", [(0, "Start"), (9, "Stop"), (11, "Alert")]),
        ({"detections_to_start": 2}, "11..." + "." * 10 + "1..1..1.1", [(1, "Start"), (3, "Stop"), (23, "Alert")]),
        ({"person_gone_after_s": 0}, "1." + "." * 12 + "1.1.1", [(0, "Start"), (1, "Stop"), (14, "Alert")]),
    ],
)
def test_what_is_decided(settings, pattern, expected):
    assert play(make(**settings), seconds(pattern)) == expected


def test_who_stays_in_view_after_a_full_clip_is_not_new():
    recorder = make()
    assert play(recorder, seconds("1" * 20)) == [(0, "Start")]
    recorder.end(20, "the clip has its full length")
    assert play(recorder, seconds("1" * 39, start=21)) == []
    assert play(recorder, seconds("1", start=60)) == [(60, "Start")]


def test_the_alert_shows_the_first_of_the_detections_that_made_the_event():
    recorder = make(detections_to_start=2)
    first = Inference(0.0, [0.4], frame="first frame", people="its people")
    recorder.step(first)
    start = recorder.step(Inference(0.1, [0.9]))
    assert isinstance(start, Start)
    assert start.first is first


def test_a_detection_from_long_ago_does_not_count():
    """The camera was away between the two: the first picture is no alert any more."""
    assert play(make(detections_to_start=2), [(0, 1), (30, 1)]) == []
    assert play(make(detections_to_start=2), [(0, 1), (30, 1), (30.1, 1)]) == [(30.1, "Start")]


@pytest.mark.parametrize("inference_s", [4.9, 5.1, 9.0])
def test_a_slow_detector_starts_events_too(inference_s):
    """yolov5m on a Zero 2 W: the second detection comes later than 5 s after the first."""
    recorder = make(detections_to_start=2)
    for number in range(2):
        action = recorder.step(Inference(number * inference_s * 1.05, [0.5], inference_s * 1000))
    assert isinstance(action, Start)
    recorder = make(detections_to_start=2)
    for number, confidences in enumerate(([0.5], [], [0.5])):
        action = recorder.step(Inference(number * inference_s * 1.05, confidences, inference_s * 1000))
    assert isinstance(action, Start), "one miss is forgiven here, too"


def test_facts_are_those_of_the_whole_event():
    recorder = make(detections_to_start=2)
    for time_s, confidences, inference_ms in [
        (0, [0.3], 10),
        (1, [0.5, 0.4], 30),
        (2, [0.91], 20),
        (3, [], 40),
        (4, [], 50),
    ]:
        action = recorder.step(Inference(time_s, confidences, inference_ms))
    assert isinstance(action, Stop)
    assert (action.facts.max_people_found, action.facts.max_confidence, action.facts.inference_time_ms) == (2, 91, 30)


def test_a_full_clip_ends_the_event_and_the_gap_counts_from_its_start():
    recorder = make()
    assert play(recorder, seconds("1" * 20)) == [(0, "Start")]
    assert recorder.end(20, "the clip has its full length").reason == "the clip has its full length"
    assert play(recorder, seconds("1" * 41, start=20)) == [(60, "Start")]


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


def test_every_frame_is_checked_from_the_first_detection_until_the_window_or_the_event_is_over():
    recorder = make(detections_to_start=2)
    states = []
    for time_s, people in seconds("..1...1.1"):
        recorder.step(Inference(time_s, [0.5] * people))
        states.append(recorder.attentive)
    assert states == [False, False, True, True, True, False, True, True, True]
    recorder.end(9, "no camera")
    assert not recorder.attentive


inferences = st.lists(st.tuples(st.floats(0.01, 15), st.integers(0, 3)), max_size=200)


@given(inferences, st.integers(1, 3), st.floats(0, 5))
def test_no_sequence_of_inferences_breaks_the_rules(steps, detections_to_start, person_gone_after_s):
    recorder = make(detections_to_start=detections_to_start, person_gone_after_s=person_gone_after_s)
    now_s, started_s, last_start_s = 0.0, None, None
    for gap_s, people in steps:
        now_s += gap_s
        action = recorder.step(Inference(now_s, [0.5] * people))
        if isinstance(action, Start):
            assert started_s is None, "clips overlap"
            assert people, "started without a person"
            assert last_start_s is None or now_s - last_start_s >= 60
            started_s = last_start_s = now_s
        elif isinstance(action, Stop):
            assert started_s is not None, "stopped what was not started"
            started_s = None
        assert recorder.recording == (started_s is not None)
