"""The detector against torch: same network, same frame, same boxes; and its pure parts against naive versions."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guardianberry.detection.detector import Detector, OpenVinoRuntime, advice_if_slow
from guardianberry.detection.postprocess import Head, Letterbox, Person, suppress
from guardianberry.detection.weights import Graph, WeightsError
from tests.daemon import OFFICIAL_WEIGHTS, SHARED

CLIPS = {"anubhavm55_CCTV.mp4": (150, 240, 400), "glenn_burglar.mp4": (60,), "intel_car-detection.mp4": (40,)}
ANCHOR_PX = 60
THRESHOLDS: dict[str, Any] = {"conf_thres": 0.255, "iou_thres": 0.45, "max_det": 1000}
needs_shared = pytest.mark.skipif(
    not OFFICIAL_WEIGHTS.is_file(), reason=f"needs {OFFICIAL_WEIGHTS}, which is not published"
)


class FakeRuntime:
    """Plays prepared outputs and notes what it was asked for."""

    def __init__(self, info: dict[str, Any], outputs: list[np.ndarray]) -> None:
        self.info, self._outputs = info, outputs
        self.prepared: list[tuple[int, int]] = []
        self.seen: list[np.ndarray] = []

    def prepare(self, height_px: int, width_px: int) -> None:
        self.prepared.append((height_px, width_px))

    def infer(self, frames: np.ndarray) -> list[np.ndarray]:
        self.seen.append(frames)
        return self._outputs


def logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability + 1e-9)))


def raw_maps(rows: list[list[float]]) -> list[np.ndarray]:
    """Three head maps for a 640x480 input that hold `rows` (x, y, w, h, objectness, person) at stride 32."""
    maps = [np.full((3, 6, 480 // stride, 640 // stride), -20, np.float32) for stride in (8, 16, 32)]
    for x, y, w, h, objectness, person in rows:
        column, row = int(x // 32), int(y // 32)
        anchor = int(np.argmin(maps[2][:, 4, row, column]))  # one that is free
        centre = [logit((x / 32 - column + 0.5) / 2), logit((y / 32 - row + 0.5) / 2)]
        size = [logit(np.sqrt(side / ANCHOR_PX) / 2) for side in (w, h)]
        maps[2][anchor, :, row, column] = [*centre, *size, logit(objectness), logit(person)]
    return [found.reshape(1, 18, *found.shape[2:]) for found in maps]


def fake_detector(rows: list[list[float]], **options: Any) -> tuple[Detector, FakeRuntime]:
    info = {"outputs": 6, "strides_px": [8, 16, 32], "anchors_px": [[[ANCHOR_PX, ANCHOR_PX]] * 3] * 3}
    runtime = FakeRuntime(info, raw_maps(rows))
    settings = {"frame_width_px": 640, "frame_height_px": 480, **THRESHOLDS, **options}
    return Detector(Graph(Path("none.xml"), "none.pt"), runtime=runtime, **settings), runtime


# --- torch as the judge ---------------------------------------------------------------------------------------------


def torch_heads(model: Any, frame: np.ndarray) -> list[np.ndarray]:
    """The uncut network's raw maps of a BGR frame, each [anchors, outputs, rows, columns]."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(frame[:, :, ::-1].transpose(2, 0, 1)))[None].float() / 255
    with torch.no_grad():
        return [raw.reshape(3, -1, *raw.shape[2:]).numpy() for raw in model(pixels)]


def torch_people(model: Any, frame: np.ndarray) -> list[Person]:
    """Detect, letterbox (padding only) and NMS written out the slow way from YOLOv5's definition."""
    from guardianberry.detection import yolov5

    height, width = frame.shape[:2]
    pad = -height % 32
    padded = np.full((height + pad, width, 3), 114, np.uint8)
    padded[pad // 2 : pad // 2 + height] = frame
    found = []
    maps = torch_heads(model, padded)
    for raw, stride, anchors in zip(maps, yolov5.STRIDES_PX, yolov5.anchors_px(model), strict=True):
        values = 1 / (1 + np.exp(-raw.astype(np.float64)))
        for a, y, x in np.argwhere(values[:, 4] * values[:, 5] > THRESHOLDS["conf_thres"]):
            tx, ty, tw, th, objectness, person = values[a, :6, y, x]
            cx, cy = (tx * 2 - 0.5 + x) * stride, (ty * 2 - 0.5 + y) * stride
            w, h = (tw * 2) ** 2 * anchors[a][0], (th * 2) ** 2 * anchors[a][1]
            found.append(Person(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, objectness * person))
    kept = naive_nms(sorted(found, key=lambda person: -person.confidence), THRESHOLDS["iou_thres"])
    limit = np.array([width, height, width, height])
    return [Person(*np.clip(np.array(p[:4]) - [0, pad // 2] * 2, 0, limit), p.confidence) for p in kept]


def iou(a: Any, b: Any) -> float:
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    union = sum((p[2] - p[0]) * (p[3] - p[1]) for p in (a, b)) - shared
    return shared / union if union > 0 else 0.0


def distance_px(a: Person, b: Person) -> float:
    return float(np.abs(np.subtract(a[:4], b[:4])).max())


def naive_nms(boxes: list[Any], threshold: float) -> list[Any]:
    kept: list[Any] = []
    for box in boxes:
        if all(iou(box, other) <= threshold for other in kept):
            kept.append(box)
    return kept


def assert_same_people(found: list[Person], expected: list[Person], *, px: float, score: float) -> None:
    """Pairwise equal; a person within `score` of the threshold may be on one side only."""
    unmatched = list(found)
    for person in expected:
        best = min(unmatched, key=lambda other: distance_px(person, other), default=None)
        if best is None or distance_px(person, best) > px:
            assert person.confidence < THRESHOLDS["conf_thres"] + score, f"{person} is not in {found}"
            continue
        unmatched.remove(best)
        assert abs(best.confidence - person.confidence) <= score, f"{best} is not {person}"
    for person in unmatched:
        assert person.confidence < THRESHOLDS["conf_thres"] + score, f"{person} is too many"


@pytest.fixture(scope="session", autouse=True)
def torch_keeps_to_one_thread() -> None:
    """Its idle threads spin, which costs seconds where other tests want the CPU."""
    pytest.importorskip("torch").set_num_threads(1)


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, list[tuple[np.ndarray, list[Person]]]]:
    """The official checkpoint as our graph; and frames with the people that torch finds in them."""
    from guardianberry.detection import conversion_child, yolov5

    xml = tmp_path_factory.mktemp("official") / "graph.xml"
    conversion_child.convert_checkpoint(OFFICIAL_WEIGHTS, xml, half=False)
    model = yolov5.load_checkpoint(OFFICIAL_WEIGHTS)
    return Graph(xml, OFFICIAL_WEIGHTS.name), [(frame, torch_people(model, frame)) for frame in clip_frames()]


def clip_frames() -> list[np.ndarray]:
    """Real frames at their own size, among them heights that need padding."""
    import av

    found = []
    for name, wanted in CLIPS.items():
        with av.open(str(SHARED / "clips" / name)) as clip:
            for number, frame in enumerate(clip.decode(video=0)):
                if number in wanted:
                    found.append(np.ascontiguousarray(frame.to_ndarray(format="bgr24")))
                if number >= max(wanted):
                    break
    return found


@needs_shared
@pytest.mark.parametrize(("precision", "px", "score"), [("f32", 1, 0.01), ("", 2, 0.03)])
def test_official_network_finds_what_torch_finds(
    official: tuple[Graph, list[tuple[np.ndarray, list[Person]]]], precision: str, px: float, score: float
) -> None:
    graph, expectations = official
    detector = Detector(graph, frame_width_px=640, frame_height_px=352, precision=precision, **THRESHOLDS)
    for frame, expected in expectations:
        assert_same_people(detector.find_people(frame), expected, px=px, score=score)
    assert sum(len(expected) for _, expected in expectations) >= 3, "the frames should show people"


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, Any]:
    """A random network of 80 classes that, wherever it sees a person, is yet surer of class 7."""
    import torch

    from guardianberry.detection import conversion_child
    from tests import networks

    model = networks.network()
    for head in model.detect.m:
        with torch.no_grad():
            weight, bias = head.weight.view(3, 85, -1), head.bias.view(3, 85)
            weight[:, 5 + 7] = weight[:, 5]
            bias[:, 5 + 7] = bias[:, 5] + 2
    xml = tmp_path_factory.mktemp("lively") / "graph.xml"
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    conversion_child.export(model, xml)
    whole = networks.network()
    whole.load_state_dict(weights)
    return Graph(xml, "lively.pt"), whole.eval()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_graph_computes_the_torch_networks_person_outputs(lively: tuple[Graph, Any]) -> None:
    graph, model = lively
    frame = noise(96, 160)
    runtime = OpenVinoRuntime(graph.xml, precision="f32", threads=1)
    runtime.prepare(96, 160)
    for raw, expected in zip(runtime.infer(frame[None]), torch_heads(model, frame), strict=True):
        np.testing.assert_allclose(raw.reshape(3, 6, *expected.shape[2:]), expected[:, :6], atol=1e-3)


def test_person_is_kept_where_another_class_scores_higher(lively: tuple[Graph, Any]) -> None:
    graph, model = lively
    frame = noise(96, 160)
    expected = torch_people(model, frame)
    scores = torch_heads(model, frame)[2]
    assert (scores[:, 5 + 7] > scores[:, 5]).all()
    detector = Detector(graph, frame_width_px=160, frame_height_px=96, precision="f32", **THRESHOLDS)
    found = detector.find_people(frame)
    assert len(expected) > 3
    assert_same_people(found, expected, px=1, score=0.01)


def test_single_class_network_scores_by_objectness_alone(tmp_path: Path) -> None:
    from guardianberry.detection import conversion_child
    from tests import networks

    model = networks.network(nc=1)
    for head in model.detect.m:
        head.bias.data += 5.0
    conversion_child.export(model, tmp_path / "own.xml", half=True)
    detector = Detector(Graph(tmp_path / "own.xml", "own.xml"), frame_width_px=160, frame_height_px=96, **THRESHOLDS)
    people = detector.find_people(noise(96, 160))
    assert people
    assert detector.model_name == "own.xml"


def test_frames_may_change_size_and_be_read_only(lively: tuple[Graph, Any]) -> None:
    graph, _ = lively
    detector = Detector(graph, frame_width_px=160, frame_height_px=96, precision="f32", **THRESHOLDS)
    first = detector.find_people(noise(96, 160))
    other = detector.find_people(noise(64, 96))
    assert other
    assert max(p.x2 for p in other) <= 96
    frame = noise(96, 160)
    frame.flags.writeable = False
    assert detector.find_people(frame) == first
    assert detector.find_people(np.asfortranarray(frame)) == first
    assert detector.last_ms > 0


def test_cached_graph_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.xml").write_text("<net")
    with pytest.raises(WeightsError, match=r"broken.xml cannot be used.*Delete it"):
        OpenVinoRuntime(tmp_path / "broken.xml", precision="", threads=1)


# --- around the network ---------------------------------------------------------------------------------------------


def test_frame_that_fits_reaches_the_runtime_without_a_copy() -> None:
    detector, runtime = fake_detector([])
    frame = noise(480, 640)
    assert detector.find_people(frame) == []
    assert runtime.seen[0].shape == (1, 480, 640, 3)
    assert np.shares_memory(runtime.seen[0], frame)


def test_other_frame_size_is_prepared_for_once() -> None:
    detector, runtime = fake_detector([])
    for size in [(480, 640), (720, 1280), (720, 1280), (480, 640)]:
        detector.find_people(noise(*size))
    assert runtime.prepared == [(480, 640), (736, 1280), (480, 640)]


@pytest.mark.parametrize("frame", [np.zeros((480, 640), np.uint8), np.zeros((480, 640, 3), np.float32)])
def test_anything_but_a_bgr_frame_is_refused(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not a BGR frame"):
        fake_detector([])[0].find_people(frame)


def test_people_come_best_first_inside_the_frame_without_doubles() -> None:
    rows = [
        [100, 100, 50, 80, 0.9, 0.5],  # .45
        [102, 101, 50, 80, 0.9, 0.9],  # .81, the same person
        [630, 470, 60, 60, 1.0, 0.7],  # reaches out of the frame
        [300, 300, 40, 40, 0.9, 0.28],  # .252: too weak, though neither factor is
        [5, 10, 60, 60, 1.0, 0.6],
    ]
    people = fake_detector(rows)[0].find_people(noise(480, 640))
    assert [round(p.confidence, 3) for p in people] == [0.81, 0.7, 0.6]
    np.testing.assert_allclose([p[:4] for p in people[1:]], [(600, 440, 640, 480), (0, 0, 35, 40)], atol=0.01)


def test_max_det_keeps_the_best() -> None:
    rows = [[50 + 60 * i, 50, 40, 40, 1.0, 0.3 + i / 20] for i in range(8)]
    people = fake_detector(rows, max_det=3)[0].find_people(noise(480, 640))
    assert [round(p.confidence, 2) for p in people] == [0.65, 0.6, 0.55]


def test_head_decodes_as_yolov5_defines_it() -> None:
    raw = np.full((3, 6, 4, 5), -9.0, np.float32)
    raw[1, :, 2, 3] = [0.4, -0.3, 0.2, -1.5, 3.0, 2.0]
    raw[2, :, 0, 0] = [0, 0, 0, 0, 3.0, -3.0]  # objectness passes, the product does not
    rows = Head(16, np.array([[30, 61], [62, 45], [59, 119]], np.float32), 6).decode(raw.reshape(1, 18, 4, 5), 0.255)
    s = 1 / (1 + np.exp(-raw[1, :, 2, 3].astype(float)))
    expected = [(s[0] * 2 - 0.5 + 3) * 16, (s[1] * 2 - 0.5 + 2) * 16, (s[2] * 2) ** 2 * 62, (s[3] * 2) ** 2 * 45]
    np.testing.assert_allclose(rows, [[*expected, s[4] * s[5]]], rtol=1e-5)


@pytest.mark.parametrize(("conf_thres", "count"), [(0.0, 24), (1.0, 0)])
def test_thresholds_at_the_ends_of_the_range(conf_thres: float, count: int) -> None:
    raw = np.zeros((1, 15, 2, 4), np.float32)
    assert len(Head(8, np.ones((3, 2), np.float32), 5).decode(raw, conf_thres)) == count


sides = st.integers(1, 2000)


@given(height=sides, width=sides, long_side=st.integers(32, 1280))
@example(height=1, width=2000, long_side=320)
@settings(deadline=None, max_examples=200)
def test_letterbox_geometry(height: int, width: int, long_side: int) -> None:
    box = Letterbox(height, width, long_side)
    rows, columns = box.input_px
    assert rows % 32 == columns % 32 == 0
    assert max(rows, columns) == -(-long_side // 32) * 32
    assert 0 <= rows - box.scaled_px[0] < 32 or rows == 32
    assert 0 <= columns - box.scaled_px[1] < 32 or columns == 32
    assert min(box.scaled_px) >= 1
    assert 0 <= box.top_px <= rows - box.scaled_px[0]
    assert 0 <= box.left_px <= columns - box.scaled_px[1]


@given(height=st.integers(64, 1100), width=st.integers(64, 1100), long_side=st.integers(64, 1280), data=st.data())
@settings(deadline=None, max_examples=200)
def test_boxes_come_back_to_where_they_were(height: int, width: int, long_side: int, data: st.DataObject) -> None:
    box = Letterbox(height, width, long_side)
    x1, x2 = sorted(data.draw(st.tuples(*[st.floats(0, width)] * 2)))
    y1, y2 = sorted(data.draw(st.tuples(*[st.floats(0, height)] * 2)))
    scale_x, scale_y = box.scaled_px[1] / width, box.scaled_px[0] / height
    there = [
        x1 * scale_x + box.left_px,
        y1 * scale_y + box.top_px,
        x2 * scale_x + box.left_px,
        y2 * scale_y + box.top_px,
    ]
    back = box.unpack(np.array([there], np.float32))[0]
    # YOLOv5 itself is off by the rounding of the scaled size and by half a pixel of odd padding. It takes the scale
    # from one side: where that is the shorter one, its rounding counts as often as the other side is longer.
    tolerance = (1.5 + 0.25 * max(box.scaled_px) / min(box.scaled_px)) / min(scale_x, scale_y) + 0.01
    np.testing.assert_allclose(back, [x1, y1, x2, y2], atol=tolerance)


@pytest.mark.parametrize(
    ("frame", "long_side", "network"),
    [
        ((480, 640), 640, (480, 640)),
        ((480, 640), 416, (320, 416)),
        ((480, 640), 320, (256, 320)),
        ((360, 640), 640, (384, 640)),
        ((720, 1280), 640, (384, 640)),
        ((640, 480), 640, (640, 480)),
        ((100, 100), 640, (640, 640)),
    ],
)
def test_input_sizes_are_those_of_yolov5(frame: tuple[int, int], long_side: int, network: tuple[int, int]) -> None:
    assert Letterbox(*frame, long_side).input_px == network


def test_scaled_frames_are_interpolated_between_grey_bars() -> None:
    stripes = np.full((720, 1280, 3), (60, 0, 0), np.uint8)
    stripes[:, ::2, 2] = 200
    packed = Letterbox(720, 1280, 640).pack(stripes)[0]
    assert packed.shape == (384, 640, 3)
    assert (packed[:12] == 114).all()
    assert (packed[372:] == 114).all()
    assert (packed[12:372] == [60, 0, 100]).all()


boxes = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40)), max_size=25, unique=True
)


@given(boxes=boxes, threshold=st.sampled_from([0.0, 0.2, 0.45, 0.7, 1.0]), max_det=st.integers(1, 30))
@settings(deadline=None, max_examples=300)
def test_suppression_agrees_with_a_naive_one(
    boxes: list[tuple[int, int, int, int]], threshold: float, max_det: int
) -> None:
    corners = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    kept = suppress(np.array(corners, np.float32).reshape(-1, 4), threshold, max_det)
    assert [corners[i] for i in kept] == naive_nms(corners, threshold)[:max_det]


def test_a_detector_that_is_too_slow_for_an_alert_within_five_seconds_says_what_to_change():
    class SlowRuntime(FakeRuntime):
        def infer(self, frames: np.ndarray) -> list[np.ndarray]:
            time.sleep(1.1)
            return super().infer(frames)

    fast, _ = fake_detector([])
    assert not advice_if_slow(fast.measure_ms())
    runtime = SlowRuntime(
        {"outputs": 6, "strides_px": [8, 16, 32], "anchors_px": [[[ANCHOR_PX, ANCHOR_PX]] * 3] * 3}, raw_maps([])
    )
    slow = Detector(
        Graph(Path("none.xml"), "none.pt"), runtime=runtime, frame_width_px=640, frame_height_px=480, **THRESHOLDS
    )
    advice = advice_if_slow(slow.measure_ms())
    assert "an inference takes 1.1 s" in advice
    assert "Set DETECTOR_INPUT_WIDTH_PX lower" in advice
    assert len(runtime.seen) == 2, "the first one of a process takes longer"
