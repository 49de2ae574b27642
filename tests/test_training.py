"""The training: loss, augmentation, metrics, and that a run which was interrupted ends with the same weights."""

from __future__ import annotations

import functools
import io
import tarfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch; the daemon does not")
cv2 = pytest.importorskip("cv2")

from guardianberry.detection.detector import Detector, OpenVinoRuntime  # noqa: E402 - only where torch is there
from guardianberry.detection.weights import Graph  # noqa: E402
from guardianberry.detection.yolov5 import COCO_ANCHORS_PX, STRIDES_PX, Conv, build, fuse  # noqa: E402
from tests.daemon import ROOT, SHARED  # noqa: E402
from training import anchors, augment, batches, metrics, plot, train, trainer, validation  # noqa: E402
from training.data import Dataset, Example, parse_labels, read_tar  # noqa: E402
from training.export import export_trained, load_trained  # noqa: E402
from training.likeness import best_match, compare  # noqa: E402
from training.loss import assign, by_cell, ciou, decode, detection_loss, feature_loss, forward_with_features  # noqa: E402
from training.read_back import read_back  # noqa: E402
from training.team import Team, lead  # noqa: E402

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
ANCHORS = torch.tensor(COCO_ANCHORS_PX).float() / torch.tensor(STRIDES_PX).view(-1, 1, 1)


def picture(box: tuple[int, int, int, int], *, width: int = 120, height: int = 90, colour=COLOURS[0]) -> Example:
    """A black image with one filled rectangle, which is the person."""
    bgr = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    bgr[y1:y2, x1:x2] = colour
    return Example("picture", bgr, np.array([box], np.float32))


def painted(bgr: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray | None:
    """x1 y1 x2 y2 around the pixels of about this colour."""
    rows, columns = np.nonzero(np.abs(bgr.astype(int) - colour).max(2) < 100)
    if not len(rows):
        return None
    return np.array((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), np.float32)


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads that wait for each other after every small operation take minutes on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Data and augmentation


def write_tar(path: Path, count: int, *, side_px: int = 64) -> Path:
    """Images of bright rectangles on noise; every fourth has nobody in it."""
    rng = np.random.default_rng(3)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            bgr, label = rng.integers(0, 60, (side_px, side_px, 3), np.uint8), ""
            if number % 4:
                x, y = (int(v) for v in rng.integers(4, side_px // 2, 2))
                bgr[y : y + 24, x : x + 16] = 230
                label = f"0 {(x + 8) / side_px} {(y + 12) / side_px} {16 / side_px} {24 / side_px}\n"
            encoded = cv2.imencode(".png", bgr)[1].tobytes()
            for name, data in ((f"{number:03}.png", encoded), (f"{number:03}.txt", label.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_labels_are_fractions_of_centre_and_size_and_end_at_the_edge():
    assert parse_labels("0 0.5 0.5 0.2 0.4\n\n0 0.1 0.5 0.4 1\n") == pytest.approx(
        np.array([[0.4, 0.3, 0.6, 0.7], [0, 0, 0.3, 1]])
    )
    assert parse_labels("").shape == (0, 4)


def test_the_cache_returns_what_the_tar_holds(tmp_path):
    tar = write_tar(tmp_path / "a.tar", 6)
    for _ in range(2):  # made, then found
        dataset = Dataset([tar], tmp_path / "cache")
        for i, example in enumerate(read_tar(tar)):
            assert dataset[i].name == example.name
            assert np.array_equal(dataset[i].bgr, example.bgr)
            assert np.array_equal(dataset[i].boxes, example.boxes)
    assert len(dataset) == 6


def test_a_cache_whose_writing_was_cut_off_is_made_again(tmp_path):
    tar = write_tar(tmp_path / "a.tar", 6)
    whole = Dataset([tar], tmp_path / "cache")[5].bgr.copy()
    (tmp_path / "cache" / "a.npz").unlink()
    (tmp_path / "cache" / "a.u8").write_bytes(b"half")
    assert np.array_equal(Dataset([tar], tmp_path / "cache")[5].bgr, whole)


def test_letterbox_and_flip_carry_the_label_along():
    example = picture((10, 20, 50, 80))
    for changed in (augment.letterbox(example, 240, 240), augment.flip(example), augment.letterbox(example, 64, 96)):
        assert painted(changed.bgr, COLOURS[0]) == pytest.approx(changed.boxes[0], abs=2)
    assert augment.flip(example).boxes[0].tolist() == [70, 20, 110, 80]


def test_labels_follow_through_mosaic_and_single():
    kept = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        examples = [picture((30, 15, 90, 70), colour=colour) for colour in COLOURS]
        mosaic = augment.mosaic(examples, 200, rng)
        single = augment.single(examples[0], 200, rng)
        for changed in (mosaic, single):
            seen = [painted(changed.bgr, colour) for colour in COLOURS]
            for box in changed.boxes:
                assert min(np.abs(box - s).max() for s in seen if s is not None) <= 3, (seed, box, seen)
            kept += len(changed.boxes)
    assert kept > 150  # most survive: the test has seen something


def test_a_label_of_which_little_is_left_is_dropped():
    boxes = np.array([[0, 0, 10, 10], [-90, 0, 10, 10]], np.float32)
    assert augment.clip_boxes(boxes, (0, 0, 100, 100)).tolist() == [[0, 0, 10, 10]]


def test_the_same_seed_gives_the_same_picture():
    examples = [picture((30, 15, 90, 70), colour=colour) for colour in COLOURS]

    def make(seed: tuple) -> Example:
        return augment.training_example(examples.__getitem__, 0, np.arange(4), size_px=64, mosaic_share=0.5, seed=seed)

    assert all(np.array_equal(make((1, 0, i)).bgr, make((1, 0, i)).bgr) for i in range(5))
    assert not all(np.array_equal(make((1, 0, i)).bgr, make((1, 1, i)).bgr) for i in range(5))


def test_mosaics_draw_rare_sources_more_often(monkeypatch):
    class Named:
        def name(self, index: int) -> str:
            return ["00_hd", "01_nim", "02_co"][index]

    monkeypatch.setattr(batches, "OFTEN", {"nim": 3})
    assert batches.mosaic_partners(Named(), [0, 1, 2]).tolist() == [0, 1, 1, 1, 2]


def test_an_epoch_shows_every_image_once():
    indexes = list(range(0, 2000, 2))
    rounds = [
        batches.plan_round(indexes, seed=1, round_number=i, rounds_per_epoch=4, progress=0.2) for i in range(4, 8)
    ]
    shown = [i for planned in rounds for batch in planned for i in batch.indexes]
    assert len(shown) == len(set(shown))
    assert len(indexes) - len(shown) <= 4 * 3  # a last batch of fewer than four is left out
    for batch in rounds[0][:-1]:
        assert len(batch.indexes) == batches.EARLY_PX // batch.size_px**2


# Loss


def perfect_heads(labels: torch.Tensor, *, size_px: int = 128, images: int = 2) -> list[torch.Tensor]:
    """Raw maps that say exactly what the labels say."""
    heads = []
    for level, stride in enumerate(STRIDES_PX):
        side = size_px // stride
        cells = torch.zeros(images, 3, side, side, 5)
        cells[..., 4] = -12
        found = assign(labels * torch.tensor([1, side, side, side, side]), ANCHORS[level], height=side, width=side)
        where = (found.image, found.anchor, found.row, found.column)
        centre = torch.logit((found.boxes[:, :2] + 0.5) / 2, eps=1e-6)
        size = torch.logit((found.boxes[:, 2:] / found.anchor_sizes).sqrt() / 2, eps=1e-6)
        cells[where] = torch.cat((centre, size, torch.full((len(size), 1), 12.0)), 1)
        heads.append(cells.permute(0, 1, 4, 2, 3).reshape(images, 15, side, side))
    return heads


LABELS = torch.tensor([[0, 0.31, 0.42, 0.2, 0.5], [1, 0.7, 0.6, 0.1, 0.15], [1, 0.2, 0.3, 0.4, 0.4]])


def test_a_perfect_prediction_costs_nothing_and_moved_boxes_cost_more():
    heads = perfect_heads(LABELS)
    box, objectness, _ = detection_loss(heads, LABELS, ANCHORS)
    assert box.item() < 1e-3
    assert objectness.item() < 1e-3
    losses = [box.item()]
    for shift in (0.005, 0.01, 0.02):
        moved = LABELS + torch.tensor([0, shift, shift, 0, 0])
        losses.append(detection_loss(heads, moved, ANCHORS)[0].item())
    assert losses == sorted(losses)
    assert losses[-1] > 0.1


def test_a_missed_person_and_an_imagined_one_both_cost():
    heads = perfect_heads(LABELS)
    assert detection_loss(heads, LABELS[:2], ANCHORS)[1] > 0.01  # says three, there are two
    assert detection_loss(perfect_heads(LABELS[:2]), LABELS, ANCHORS)[1] > 0.01


def test_a_batch_without_people_has_a_loss_with_a_gradient():
    heads = [torch.zeros(1, 15, side, side, requires_grad=True) for side in (16, 8, 4)]
    box, objectness, _ = detection_loss(heads, torch.zeros(0, 5), ANCHORS)
    (box + objectness).backward()
    assert heads[0].grad.abs().sum() > 0


def test_ciou_of_a_box_with_itself_is_one_and_falls_with_distance():
    box = torch.tensor([[5.0, 5.0, 4.0, 2.0]])
    values = [ciou(box, box + torch.tensor([[d, 0.0, 0.0, 0.0]])).item() for d in (0.0, 1.0, 3.0, 30.0)]
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0


def test_every_label_is_decodable_where_it_is_assigned():
    for level, stride in enumerate(STRIDES_PX):
        side = 128 // stride
        found = assign(LABELS * torch.tensor([1, side, side, side, side]), ANCHORS[level], height=side, width=side)
        assert ((found.boxes[:, :2] > -0.5) & (found.boxes[:, :2] < 1.5)).all()  # what 2 * sigmoid - 0.5 can reach
    assert len(found.image)


def test_the_teacher_vouches_for_people_whom_nobody_labelled():
    taught = perfect_heads(LABELS)
    silent, agreeing = perfect_heads(LABELS[:2]), perfect_heads(LABELS)
    nobody, somebody = (detection_loss(heads, LABELS[:2], ANCHORS, taught) for heads in (silent, agreeing))
    assert somebody[1] < 1e-3 < nobody[1]
    assert somebody[2] < 1e-3 < nobody[2]


def test_a_label_that_the_teacher_denies_scores_only_where_labels_score():
    taught = perfect_heads(LABELS[:0])
    cells = perfect_heads(LABELS)
    with_labels, without = (
        detection_loss(cells, LABELS, ANCHORS, taught, labels_score=labels_score) for labels_score in (True, False)
    )
    assert with_labels[1] < 1e-3 < without[1]
    assert with_labels[0] == without[0] < 1e-3


def test_features_alike_cost_nothing():
    maps = {4: torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    assert feature_loss(maps, maps) == 0
    assert feature_loss({4: maps[4] + 1}, maps) > 0.5


def test_fed_with_the_teachers_maps_each_block_learns_alone():
    student, teacher = build(nc=1, seed=0).train(), build(nc=1, seed=1).eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, taught = forward_with_features(teacher, x)
    _, alone = forward_with_features(student, x, taught)
    alone[6].square().mean().backward()  # the block of layers 5 and 6
    touched = {int(name.split(".")[1]) for name, p in student.named_parameters() if p.grad is not None}
    assert touched == {5, 6}


def test_a_copy_of_the_teacher_shows_whatever_its_order():
    teacher = fuse(build(nc=1, seed=1).eval())
    assert all(row[1] == pytest.approx(1, abs=1e-4) for row in compare(teacher, teacher))
    rows = compare(fuse(build(nc=1, seed=2).eval()), teacher)
    assert abs(np.mean([row[1] for row in rows])) < 0.05
    kernels = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    assert best_match(kernels.flip(0) * 3, kernels) == pytest.approx(1)
    assert best_match(torch.randn(16, 40, generator=torch.Generator().manual_seed(1)), kernels) < 0.6


def test_the_heads_are_those_of_the_network_itself():
    model = build(nc=1, seed=0).eval()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(x), forward_with_features(model, x)[0], strict=True))


# Metrics


def test_average_precision_by_hand():
    # Right, wrong, right of two: precision 1 up to recall 0.5 (51 of COCO's 101 points), then 2/3.
    scores, right = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    assert metrics.average_precision(scores, right, 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert metrics.average_precision(scores, right, 4) == pytest.approx((26 + 25 * 2 / 3) / 101)
    assert metrics.average_precision(scores[::-1], right[::-1], 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert metrics.average_precision(np.array([]), np.array([], bool), 2) == 0


def test_a_second_box_on_the_same_person_is_wrong():
    truth = np.array([[0, 0, 10, 10]], np.float32)
    found = np.array([[0, 0, 10, 10, 0.9], [0, 0, 10, 9, 0.8]], np.float32)
    assert metrics.match(found, truth, 0.5).tolist() == [True, False]
    assert metrics.match(found[1:], truth, 0.95).tolist() == [False]


def test_area_under_curve_by_hand():
    # Four pairs: 0.9 beats both, 0.4 loses to 0.5 and ties with 0.4.
    assert metrics.area_under_curve(np.array([0.9, 0.4]), np.array([0.5, 0.4])) == pytest.approx(2.5 / 4)


def test_rates_of_images():
    person, nobody = np.array([[0, 0, 10, 10]], np.float32), np.zeros((0, 4), np.float32)
    sure, unsure = (np.array([[0, 0, 10, 10, score]], np.float32) for score in (0.9, 0.1))
    result = metrics.measure([sure, unsure, unsure, sure[:0]], [person, person, nobody, nobody], 0.25)
    assert (result.recall, result.false_rate) == (0.5, 0)
    assert result.auc == pytest.approx(3.5 / 4)


# Anchors


def test_fitted_anchors_reach_boxes_that_cocos_do_not():
    rng = np.random.default_rng(0)
    odd = np.stack((rng.uniform(300, 400, 500), rng.uniform(4, 8, 500)), 1)  # very wide, very flat
    fitted = anchors.fit(odd)
    assert anchors.best_possible_recall(odd, COCO_ANCHORS_PX) < 0.1
    assert anchors.best_possible_recall(odd, fitted) > 0.99
    assert anchors.choose(odd) != COCO_ANCHORS_PX
    assert anchors.choose(rng.uniform(20, 200, (500, 2))) == COCO_ANCHORS_PX


# Training


@pytest.fixture
def small(monkeypatch):
    """Pictures of 64 px and a quarter of a network, so that a step takes milliseconds."""
    monkeypatch.setattr(trainer, "build", functools.partial(build, width=0.125))
    for name, value in {"EARLY_SIZES": {64: 1.0}, "LATE_SIZES": {64: 1.0}, "EARLY_PX": 4 * 64 * 64}.items():
        monkeypatch.setattr(batches, name, value)
    monkeypatch.setattr(batches, "LATE_PX", 4 * 64 * 64)
    monkeypatch.setattr(validation, "VALIDATION_PX", 64)
    monkeypatch.setattr(trainer, "WARM_UP_BATCHES", 1)
    monkeypatch.setattr(trainer, "BLOCKS_RATE", 1.5e-3)
    monkeypatch.setattr(train, "draw_curves", lambda history, path: None)


def arguments(tmp_path: Path, name: str) -> Namespace:
    tar = tmp_path / "shard.tar"
    if not tar.exists():
        write_tar(tar, 16)
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    line = ["--shards", tar, "--run", folder, "--cache", tmp_path / "cache", "--epochs", "2", "--device", "cpu"]
    return train.parse_arguments([str(word) for word in line])


@pytest.mark.own_process
def test_a_few_steps_on_one_batch_lower_the_loss(tmp_path, small):
    examples = list(read_tar(write_tar(tmp_path / "a.tar", 4)))
    batch = batches.as_picture(*batches.collate(examples))
    run = trainer.Trainer(None, seed=0, device=torch.device("cpu"), epochs=1000)
    losses = [run.step(batch).total.item() for _ in range(40)]
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3]), losses


@pytest.mark.own_process
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, small):
    whole = train.Run(arguments(tmp_path, "whole"), Team())
    whole.train()
    first = train.Run(arguments(tmp_path, "parts"), Team())
    steps = []

    def step_then_stop(picture, **known):
        steps.append(1)
        if len(steps) == 3:
            first.stop.set()
        return trainer.Trainer.step(first.trainer, picture, **{**known, "stop": first.stop.is_set()})

    first.trainer.step = step_then_stop
    first.train()
    assert 0 < first.trainer.batches_done < whole.trainer.batches_done
    second = train.Run(arguments(tmp_path, "parts"), Team())
    second.train()
    assert second.trainer.batches_done == whole.trainer.batches_done
    for ours, theirs in ((second.trainer.model, whole.trainer.model), (second.trainer.average, whole.trainer.average)):
        ours, theirs = (getattr(network, "model", network).state_dict() for network in (ours, theirs))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(second.trainer.history) == 2


def test_a_run_can_go_on_from_the_weights_of_another(tmp_path, monkeypatch):
    model = build(nc=1, seed=5)
    trainer.save(tmp_path / "best.pt", trainer.half_weights(model))
    known = {"seed": 0, "device": torch.device("cpu"), "epochs": 1}
    fresh, started = trainer.Trainer(None, **known), trainer.Trainer(None, **known, start=tmp_path / "best.pt")
    weights = started.model.state_dict()
    assert all(torch.allclose(weights[name], tensor, atol=1e-2) for name, tensor in model.state_dict().items())
    assert not torch.allclose(fresh.model.detect.m[0].weight, model.detect.m[0].weight, atol=1e-2)
    assert torch.equal(started.average.model.detect.m[0].weight, started.model.detect.m[0].weight)
    assert (started.labels_score, started.blocks_until) == (True, 0)
    monkeypatch.setattr(trainer.Trainer, "_load_teacher", lambda self, path: model)
    taught = trainer.Trainer(tmp_path, **known)
    assert (taught.labels_score, taught.blocks_until) == (True, trainer.BLOCKS_UNTIL)
    taught = trainer.Trainer(tmp_path, **known, start=tmp_path / "best.pt")
    assert (taught.labels_score, taught.blocks_until) == (False, 0)


def test_the_rate_falls_once_for_the_blocks_and_once_for_the_whole_network():
    late = trainer.WARM_UP_BATCHES
    once = [trainer.learning_rate(share, late, blocks_until=0) for share in (0, 0.5, 1)]
    assert once == [
        trainer.WHOLE_RATE,
        pytest.approx(0.51 * trainer.WHOLE_RATE),
        pytest.approx(0.02 * trainer.WHOLE_RATE),
    ]
    twice = [trainer.learning_rate(share, late, blocks_until=0.4) for share in (0, 0.3, 0.399, 0.4, 0.5, 1)]
    assert twice[0] == trainer.BLOCKS_RATE > twice[1] > twice[2] > twice[3]
    assert twice[2] == pytest.approx(0.02 * trainer.BLOCKS_RATE, rel=0.01)
    assert twice[4] > twice[3] > twice[5] == pytest.approx(once[2])


def test_the_epochs_of_runs_that_went_on_from_each_other_are_counted_on():
    first, second = [{"epoch": 1.0, "auc": 0.5}, {"epoch": 2.0, "auc": 0.6}], [{"epoch": 1.0, "auc": 0.7}]
    assert plot.chain([first, second]) == [*first, {"epoch": 3.0, "auc": 0.7}]


def test_the_best_weights_become_a_graph_that_the_daemon_runs(tmp_path):
    model = build(nc=1, seed=5).eval()
    trainer.bias_heads(model.detect)
    with torch.no_grad():
        for head in model.detect.m:
            head.bias.view(3, 5)[:, 4] += 4  # random weights find something
    trainer.save(tmp_path / "best.pt", trainer.half_weights(model))
    xml = tmp_path / "small.xml"
    export_trained(tmp_path / "best.pt", xml)
    sizes = [path.stat().st_size for path in (xml, xml.with_suffix(".bin"))]
    assert sum(sizes) <= 4_000_000
    assert [line.split()[1] for line in xml.with_suffix(".sha256").read_text().splitlines()] == [xml.name, "small.bin"]
    frame = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    detector = Detector(
        Graph(xml, xml.name), frame_width_px=128, frame_height_px=128, conf_thres=0.001, iou_thres=0.45, max_det=300,
        precision="f32",
    )  # fmt: skip
    found = np.array(detector.find_people(frame))
    batch = batches.as_picture(*batches.collate([Example("", frame, np.zeros((0, 4), np.float32))]))
    with torch.no_grad():
        expected = validation.people_in(model(batch.images.float() / 255), model.detect.anchors, image_px=(128, 128))[0]
    assert len(found) > 5
    assert found[:5, 4] == pytest.approx(expected[:5, 4], abs=0.01)
    assert found[0, :4] == pytest.approx(expected[0, :4].clip(0, 128), abs=1)


def _member(folder: Path, team: Team) -> None:
    gradients = [torch.full((2, 2), float(team.rank)), torch.full((3,), 10.0 * team.rank)]
    values = team.share(gradients, [float(team.rank)])
    (folder / str(team.rank)).write_text(f"{gradients[0].tolist()} {gradients[1].tolist()} {values}")


@pytest.mark.own_process
def test_two_processes_share_their_gradients(tmp_path):
    try:
        lead(_member, tmp_path, 2)
    finally:
        torch.distributed.destroy_process_group()
    expected = "[[0.5, 0.5], [0.5, 0.5]] [5.0, 5.0, 5.0] [0.5]"
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [expected, expected]


# The real data, where it is


@pytest.mark.skipif(not (SHARED / "eval").is_dir(), reason="needs ../shared/eval, which is not published")
def test_the_evaluation_set_holds_what_its_readme_says():
    examples = list(read_tar(SHARED / "eval" / "coco_val2017_subset.tar"))
    assert (len(examples), sum(len(example.boxes) for example in examples)) == (316, 623)


def test_raw_zeros_decode_to_the_middle_of_the_cell_and_the_anchors_size():
    raw = torch.zeros(1, 15, 4, 4)
    cells = by_cell(raw)
    box = decode(cells.reshape(-1, 5), torch.ones(48, 2))
    assert box[0].tolist() == [0.5, 0.5, 1, 1]


# The bundled model's trainable form


def test_a_graph_read_back_computes_what_it_did_and_can_go_on_training(tmp_path: Path) -> None:
    path = tmp_path / "back.pt"
    trainer.save(path, trainer.half_weights(read_back(ROOT / "models" / "guardianberry-n.xml")))
    assert path.stat().st_size < 4_000_000
    model = load_trained(path)
    frame = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    runtime = OpenVinoRuntime(ROOT / "models" / "guardianberry-n.xml", precision="f32", threads=1)
    runtime.prepare(64, 96)
    with torch.no_grad():
        heads = model(torch.from_numpy(frame[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255)
    for ours, graphs in zip(heads, runtime.infer(frame), strict=True):
        assert np.abs(ours.numpy() - graphs).max() < 5e-3  # of raw values up to 13
    assert all(isinstance(m.bn, torch.nn.BatchNorm2d) for m in model.modules() if isinstance(m, Conv))
