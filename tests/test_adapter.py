"""The night adapter: its file, the night that is made of day pictures, and what one training step does."""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from guardianberry.detection.adapter import (
    MAX_UNPACKED_BYTES,
    Adapter,
    AdapterError,
    adapter_path,
    read_adapter,
)

torch = pytest.importorskip("torch", reason="training needs torch; the daemon does not")
cv2 = pytest.importorskip("cv2")

from bench.night import FALSE_RATE, Still, darkest_night, group_weights, measure  # noqa: E402 - imports cv2
from guardianberry.detection import conversion_child  # noqa: E402 - only where torch is there
from guardianberry.detection.detector import OpenVinoRuntime  # noqa: E402
from guardianberry.detection.openvino_model import file_sha256  # noqa: E402 - only where torch is there
from guardianberry.detection.weights import Graph, Setup, find_graph  # noqa: E402
from guardianberry.detection.yolov5 import keep_person_only, load_checkpoint  # noqa: E402
from tests import networks  # noqa: E402
from tests.test_weights import copying  # noqa: E402
from training import adapt, adapter  # noqa: E402
from training.adapt_data import Kind, View  # noqa: E402
from training.loss import by_cell  # noqa: E402
from training.night import PAD_LEVEL, at_night  # noqa: E402
from training.trainer import half_weights, save  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads that wait for each other after every small operation take minutes on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with random weights in the form of an official checkpoint."""
    path = tmp_path_factory.mktemp("official") / "tiny.pt"
    networks.save_official(networks.network(), path)
    return path


def gradient(height: int = 64, width: int = 96) -> np.ndarray:
    """A bright colourful picture without any pixel of the padding's grey."""
    rows = np.linspace(140, 250, height)[:, None, None]
    return np.broadcast_to(rows * np.array((0.9, 1.0, 0.8)), (height, width, 3)).astype(np.uint8)


# The file


def test_a_file_gives_back_each_difference_to_half_a_step_of_its_filter(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.01, (4, 3, 3, 3)).astype(np.float32)
    weight[1] *= 100  # a large filter does not make the steps of the others coarse
    weight[2] = 0
    bias = np.array((0.5, -0.25), np.float32)
    adapter.write_adapter(tmp_path / "a.npz", Adapter("00ff", {"conv.weight": weight, "bn.bias": bias}))
    found = read_adapter(tmp_path / "a.npz")
    assert found.official_sha256 == "00ff"
    assert found.differences["bn.bias"] == pytest.approx(bias)
    for ours, theirs in zip(weight, found.differences["conv.weight"], strict=True):
        assert np.abs(ours - theirs).max() <= np.abs(ours).max() / 127 * 0.51


def test_differences_are_added_to_the_tensors_they_name_and_to_no_other() -> None:
    network = torch.nn.ParameterDict({"a": torch.ones(2), "b": torch.ones(3)})
    conversion_child.adapt(network, Adapter("", {"a": np.array((0.5, -1), np.float32)}))
    assert network["a"].tolist() == [1.5, 0.0]
    assert network["b"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "differences", [{"c": np.zeros(2)}, {"a": np.zeros(3)}, {"a": np.array((np.inf, 0))}], ids=["name", "shape", "inf"]
)
def test_a_difference_that_does_not_fit_is_refused(differences: dict[str, np.ndarray]) -> None:
    with pytest.raises(AdapterError, match=r"does not fit this network at [ac]"):
        conversion_child.adapt(torch.nn.ParameterDict({"a": torch.ones(2)}), Adapter("", differences))


def test_a_file_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for content in (b"", b"not a zip", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with pytest.raises(AdapterError, match=r"a.npz is no adapter"):
            read_adapter(path)
    np.savez(path, official_sha256=np.array("0"), pickled=np.array([{}], dtype=object))
    with pytest.raises(AdapterError, match=r"a.npz is no adapter: pickled.npy has another size"):
        read_adapter(path)
    path.write_bytes(bytes((2 << 20) + 1))
    with pytest.raises(AdapterError, match=r"larger than"):
        read_adapter(path)


def array_file(count: int, content: bytes) -> bytes:
    """As NumPy writes an array of so many int8, with this content whatever that is."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|i1", "fortran_order": False, "shape": (count,)})
    return file.getvalue() + content


LARGE = array_file(32 << 20, bytes(32 << 20))


@pytest.mark.parametrize(
    ("content", "packing", "stated_bytes", "reason"),
    [
        (LARGE, zipfile.ZIP_DEFLATED, len(LARGE), "unpacks to more than"),
        (LARGE, zipfile.ZIP_DEFLATED, 1000, "a.npy has another size than its header says"),
        (LARGE, zipfile.ZIP_LZMA, 1000, "a.npy is packed in another way"),
        (array_file(1 << 40, b"0"), zipfile.ZIP_STORED, 0, "a.npy has another size than its header says"),
    ],
    ids=["honest bomb", "bomb that says it is small", "bomb of another packing", "header that asks for a terabyte"],
)
def test_no_adapter_takes_more_memory_than_an_adapter_needs(
    tmp_path: Path, content: bytes, packing: int, stated_bytes: int, reason: str
) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("a.npy", content)
    if stated_bytes:  # in the directory, and the checksum that belongs to it
        data = path.read_bytes()
        for old, new in ((len(content), stated_bytes), (zlib.crc32(content), zlib.crc32(content[:stated_bytes]))):
            data = data.replace(old.to_bytes(4, "little"), new.to_bytes(4, "little"))
        path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(AdapterError, match=reason):
            read_adapter(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * MAX_UNPACKED_BYTES
    finally:
        tracemalloc.stop()


def test_the_mean_of_two_runs_goes_into_the_file_and_comes_out_applied(official: Path, tmp_path: Path) -> None:
    before = keep_person_only(load_checkpoint(official))
    runs = []
    for number, change in enumerate((0.1, 0.3)):
        model = keep_person_only(load_checkpoint(official))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += change
        runs.append(tmp_path / f"{number}.pt")
        save(runs[-1], half_weights(model))
    made = adapter.make_adapter(official, runs, share=0.5, bias=0.25)
    assert made.official_sha256 == file_sha256(official)
    adapter.write_adapter(tmp_path / "a.npz", made)
    after = adapter.adapted(official, read_adapter(tmp_path / "a.npz"))
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        change = (new - old).detach()
        if name.startswith("model.24") and name.endswith("bias"):  # half of 0.2, and 0.25 on objectness
            assert change.view(3, 6)[0] == pytest.approx(np.array((0.1, 0.1, 0.1, 0.1, 0.35, 0.1)), abs=2e-3)
        else:
            assert change.numpy() == pytest.approx(0.1, abs=2e-3), name


# In the daemon

# What the real converter does with the adapter alone: torch and the network are 3 s of computing.
WITHOUT_NETWORK = (
    sys.executable,
    "-c",
    "import sys, types; from guardianberry.convert import main;"
    "sys.modules['guardianberry.detection.yolov5'] = types.SimpleNamespace(load_checkpoint=lambda source: None);"
    "sys.exit(main(sys.argv[1:]))",
)


@pytest.fixture(scope="module")
def converted_folder(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the small official checkpoint, which an earlier start has converted."""
    folder, graph = tmp_path_factory.mktemp("converted"), tmp_path_factory.mktemp("graph") / "tiny.xml"
    shutil.copyfile(official, folder / official.name)
    conversion_child.convert_checkpoint(official, graph, half=False)  # here, where torch is loaded already
    find_graph(official.name, folder, setup=Setup(converter=copying(graph)))
    return folder


@pytest.fixture
def adapted_folder(official: Path, converted_folder: Path, tmp_path: Path) -> Path:
    """The same with an adapter that lowers each objectness by 1."""
    shutil.copytree(converted_folder, tmp_path, dirs_exist_ok=True)
    difference = np.zeros(18, np.float32)
    difference[4::6] = -1
    differences = {f"model.24.m.{level}.bias": difference for level in range(3)}
    adapter.write_adapter(adapter_path(tmp_path / official.name), Adapter(file_sha256(official), differences))
    return tmp_path


def objectness(graph: Graph) -> np.ndarray:
    runtime = OpenVinoRuntime(graph.xml, precision="f32", threads=1)
    runtime.prepare(64, 64)
    return runtime.infer(np.full((1, 64, 64, 3), 90, np.uint8))[0][0, 4::6].copy()


def test_the_official_checkpoint_is_used_with_the_adapter_beside_it(
    official: Path, adapted_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(official_sha256={official.name: file_sha256(official)})
    with caplog.at_level(logging.INFO):
        graph = find_graph(official.name, adapted_folder, setup=setup)
    assert graph.model_name == "tiny.pt+night"
    assert any(message.startswith("tiny.pt+night converted in ") for message in caplog.messages)
    assert find_graph(official.name, adapted_folder, setup=setup) == graph
    plain = find_graph(official.name, adapted_folder)  # not an official name: a checkpoint of the user's own
    assert plain.model_name == "tiny.pt"
    assert objectness(graph) == pytest.approx(objectness(plain) - 1, abs=0.01)


def test_an_adapter_that_is_broken_or_for_another_checkpoint_is_told_and_left_out(
    official: Path, adapted_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(official_sha256={official.name: file_sha256(official)})
    path = adapter_path(adapted_folder / official.name)
    adapter.write_adapter(path, read_adapter(path)._replace(official_sha256="0" * 64))
    assert find_graph(official.name, adapted_folder, setup=setup).model_name == "tiny.pt"
    path.write_bytes(b"cut off")
    quick = setup._replace(converter=WITHOUT_NETWORK)
    assert find_graph(official.name, adapted_folder, setup=quick).model_name == "tiny.pt"
    os.truncate(path, 10**13)  # a hole, which would be hashed for hours
    assert find_graph(official.name, adapted_folder, setup=setup).model_name == "tiny.pt"
    first, second, third = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "tiny.pt is used without tiny-night.npz: " in first
    assert "made for another tiny.pt" in first
    assert "tiny-night.npz is no adapter" in second
    assert "it has 10000000000000 bytes" in third


# The night


def test_night_is_reproducible_dimmer_and_leaves_the_padding() -> None:
    day = gradient()
    day[:, :20] = PAD_LEVEL
    boxes = np.array(((40, 10, 60, 60),), np.float32)
    nights = [at_night(day, boxes, np.random.default_rng(seed)) for seed in range(40)]
    assert {(night.shape, night.dtype) for night in nights} == {(day.shape, day.dtype)}
    assert all((night[:, :20] == PAD_LEVEL).all() for night in nights)
    assert np.mean([night[:, 20:].mean() for night in nights]) < day[:, 20:].mean() / 2
    grey = [(night[..., 0] == night[..., 1]).all() and (night[..., 0] == night[..., 2]).all() for night in nights]
    assert 0.5 < np.mean(grey) < 0.9  # infrared or dim grey; the others keep colour
    assert (at_night(day, boxes, np.random.default_rng(7)) == nights[7]).all()
    assert (day[:, 20:] == gradient()[:, 20:]).all()  # the picture that the teacher sees is untouched


def test_night_takes_pictures_without_people_or_of_one_colour() -> None:
    nobody = np.zeros((0, 4), np.float32)
    for seed in range(40):
        at_night(np.zeros((32, 32, 3), np.uint8), nobody, np.random.default_rng(seed))
        at_night(np.full((32, 32, 3), 255, np.uint8), nobody, np.random.default_rng(seed))


# A step


def cells(objectness: float, person: float) -> torch.Tensor:
    values = torch.zeros(1, 3, 2, 2, 6)
    values[..., 4], values[..., 5] = objectness, person
    return values.requires_grad_()


def test_score_loss_is_zero_at_the_target_and_pulls_towards_it() -> None:
    values = cells(1.0, 0.5)
    score = values[..., 4].sigmoid() * values[..., 5].sigmoid()
    assert adapt.score_loss(values, score.detach()).item() == pytest.approx(0, abs=1e-6)
    for target, sign in ((0.0, 1), (1.0, -1)):
        gradients = torch.autograd.grad(adapt.score_loss(values, torch.full_like(score, target)), values)[0]
        assert (gradients[..., 4:].sign() == sign).all()
        assert (gradients[..., :4] == 0).all()
    for extreme in (50.0, -50.0):
        assert torch.isfinite(adapt.score_loss(cells(extreme, extreme), torch.full_like(score, 0.5)))


def batch(official: Path, kind: Kind) -> adapt.Batch:
    picture = gradient(64, 64)
    boxes = np.array(((8, 8, 40, 60),), np.float32) if not kind.nobody else np.zeros((0, 4), np.float32)
    return adapt.as_batch([View(picture, picture // 8, boxes, kind)] * 2, all_labels=False)


def scores_after(official: Path, kind: Kind, steps: int) -> tuple[float, float]:
    """The highest score on the batch's night picture before and after some steps."""
    adaptation = adapt.Adaptation(official, minutes=10, rate=3e-3)
    for head in adaptation.model.detect.m:
        torch.nn.init.constant_(head.bias, 0.0)
    views = batch(official, kind)

    def best() -> float:
        with torch.no_grad():
            heads = adaptation.model(views.night.float() / 255)
        return max(float((by_cell(h)[..., 4].sigmoid() * by_cell(h)[..., 5].sigmoid()).max()) for h in heads)

    before = best()
    statistics = {n: b.clone() for n, b in adaptation.model.named_buffers()}
    for _ in range(steps):
        adaptation.batches_done = 1000  # past the warm-up
        adaptation.step(views)
    assert all((b == statistics[n]).all() for n, b in adaptation.model.named_buffers())  # batch norm keeps its own
    return before, best()


def test_a_step_lowers_the_score_where_nobody_is_whatever_the_teacher_says(official: Path) -> None:
    before, after = scores_after(official, Kind.NIGHT_NOBODY, 5)
    assert after < before / 1.5


def test_labels_count_on_real_nights_and_not_on_made_ones(official: Path) -> None:
    heads = [torch.zeros(2, 18, 8 // s, 8 // s) for s in (1, 2, 4)]
    silent = [h.clone() for h in heads]
    for h in silent:
        h[:, 4::6] = -20.0  # the teacher sees nobody
    anchors = load_checkpoint(official).detect.anchors
    pulls = {}
    for kind in (Kind.REAL_PEOPLE, Kind.NIGHT_PEOPLE):
        ours = [h.clone().requires_grad_() for h in heads]
        score, _ = adapt.losses(ours, silent, batch(official, kind), anchors)
        score.backward()
        pulls[kind] = min(float(h.grad[:, 4::6].min()) for h in ours)
    assert pulls[Kind.REAL_PEOPLE] < pulls[Kind.NIGHT_PEOPLE]
    assert pulls[Kind.NIGHT_PEOPLE] > 0  # every score is drawn down, to the teacher's


# The bench


def test_measure_compares_at_equal_false_rates_and_counts_groups_once() -> None:
    stills = [Still(np.zeros((1, 1, 3), np.uint8), i < 4, f"g{0 if i < 3 else i}") for i in range(104)]
    scores = np.concatenate(([0.9, 0.9, 0.9, 0.1], np.linspace(0, 0.5, 100)))
    result = measure(scores, stills)
    assert result.recall_at_false_rate == 0.75
    assert result.group_recall_at_false_rate == 0.5
    threshold = np.sort(scores[4:])[::-1][int(FALSE_RATE * 100)]
    assert (scores[4:] > threshold).mean() <= FALSE_RATE
    assert result.auc == pytest.approx((3 + 0.2) / 4)
    assert result.group_auc == pytest.approx((1 + 0.2) / 2)
    assert group_weights(["a", "a", "b"]).tolist() == [0.25, 0.25, 0.5]


def test_the_darkest_night_is_grey_dim_and_the_same_for_the_same_seed() -> None:
    still = Still(gradient(), True, "g")
    dark = darkest_night(still, 3).bgr
    assert dark.mean() < 30
    assert (dark[..., 0] == dark[..., 2]).all()
    assert (dark == darkest_night(still, 3).bgr).all()
