"""Checkpoints of every size are read exactly; hostile, foreign and broken ones are refused and run nothing."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="checkpoints are converted with torch")

from guardianberry.detection import checkpoint, yolov5  # noqa: E402 - only where torch is there
from guardianberry.detection.pickle_reader import CheckpointError, interpret  # noqa: E402
from tests import networks  # noqa: E402

NO_TENSOR = pickle.dumps({"model": None}, protocol=2)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "small.pt"
    networks.save_official(networks.network(), path)
    return path


def rewrite(source: Path, target: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """`source` with its records changed, and with a zip directory that is right again."""
    with zipfile.ZipFile(source) as archive:
        records = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    change(records)
    return write(target, {f"archive/{name}": body for name, body in records.items()})


def write(target: Path, records: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(target, "w", **options) as archive:
        for name, body in records.items():
            archive.writestr(name, body)
    return target


def refusal(path: Path) -> str:
    """Why `path` is refused; it must be."""
    with pytest.raises(CheckpointError, match="no code from this file was run") as caught:
        yolov5.load_checkpoint(path)
    return str(caught.value)


# --- good ones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "depth", "nc"),
    # Widths and depths of yolov5n to x, not all multiplied with each other: the large ones take seconds.
    [
        *((0.25, 0.33, 80), (0.5, 0.33, 1)),
        *((0.125, 0.67, 80), (0.125, 1, 2), (0.125, 1.33, 80)),
    ],
)
def test_every_size_is_read_exactly(tmp_path: Path, width: float, depth: float, nc: int) -> None:
    model = yolov5.build(nc=nc, width=width, depth=depth)
    networks.save_official(model, tmp_path / "some.pt")
    expected = model.float().state_dict()
    found = yolov5.load_checkpoint(tmp_path / "some.pt").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_custom_model_of_one_class_keeps_its_class_score(tmp_path: Path) -> None:
    """YOLOv5's own training gives 6 outputs an anchor for one class; ours gives 5."""
    model = yolov5.build(nc=1, outputs=6, width=0.125)
    networks.save_official(model, tmp_path / "custom.pt")
    assert yolov5.load_checkpoint(tmp_path / "custom.pt").detect.no == 6


def test_torch_never_reads_the_file(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("torch was asked to read the file")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch._C, "PyTorchFileReader", refuse)
    assert yolov5.load_checkpoint(good).detect.no == 85


# --- hostile pickles ------------------------------------------------------------------------------------------------

# {"model": a tensor of 2**20 floats whose record holds 4 bytes}, then SETITEM into that tensor: CVE-2026-24747.
CLAIMS_MORE = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuJ\x00\x00\x10\x00tQK\x00J\x00\x00\x10\x00\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
)
SETS_ITEM = CLAIMS_MORE + b"J\xff\xff\x0f\x00G\x40\x45\x00\x00\x00\x00\x00\x00s"

HOSTILE_PICKLES = {
    "write into a tensor": (b"\x80\x02" + SETS_ITEM + b".", "a TensorInFile where only a dict can be"),
    "many writes into a tensor": (b"\x80\x02" + CLAIMS_MORE + b"(K\x01K\x02K\x03K\x04u.", "only a dict"),
    "append to a tensor": (b"\x80\x02" + CLAIMS_MORE + b"K\x01a.", "only a list"),
    "state into a tensor": (b"\x80\x02" + CLAIMS_MORE + b"}b.", "only a Layer"),
    "a tensor called": (b"\x80\x02" + CLAIMS_MORE + b")R.", "only a _Name"),
    "a tensor as a class": (b"\x80\x02" + CLAIMS_MORE + b")\x81.", "only a _Name"),
    "system": (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "it calls os.system"),
    "eval": (b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.", "it calls __builtin__.eval"),
    "getattr": (b"\x80\x02c__builtin__\ngetattr\nNN\x86R.", "it calls __builtin__.getattr"),
    "new object": (b"\x80\x02csubprocess\nPopen\nX\x04\x00\x00\x00true\x85\x81.", "it holds a subprocess.Popen"),
    "layer made by a call": (b"\x80\x02cmodels.common\nConv\n)R.", "it calls models.common.Conv"),
    "storage by a call": (b"\x80\x02ctorch\nFloatStorage\nK\x01\x85R.", "it calls torch.FloatStorage"),
    "set of something": (b"\x80\x02c__builtin__\nset\n]K\x01a\x85R.", "it calls __builtin__.set"),
    "state into a name": (b"\x80\x02cmodels.common\nConv\n}b.", "only a Layer"),
    "protocol 0 instance": (b"(X\x04\x00\x00\x00trueios\nsystem\n.", "uses INST"),
    "protocol 4 name": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "uses PROTO"),
    "extension registry": (b"\x80\x02\x82\x01.", "uses EXT1"),
    "out-of-band buffer": (b"\x80\x02\x97.", "uses NEXT_BUFFER"),
    "tuple as a key": (b"\x80\x02}" + b")" + b"\x85" * 50_000 + b"K\x01s.", "a tuple where only a int can be"),
    "no end": (b"\x80\x02}", "damaged"),
    "stack of nothing": (b"\x80\x02a.", "damaged"),
    "memory of nothing": (b"\x80\x02h\x07.", "damaged"),
    "text longer than the file": (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
    "number in words": (b"I" + b"9" * 5000 + b"\n.", "damaged|uses INT"),
}


@pytest.mark.parametrize(("body", "reason"), HOSTILE_PICKLES.values(), ids=HOSTILE_PICKLES)
def test_hostile_pickles_are_refused(tmp_path: Path, body: bytes, reason: str) -> None:
    path = write(tmp_path / "evil.pt", {"archive/data.pkl": body, "archive/data/0": bytes(4)})
    assert re.search(reason, refusal(path))


def test_a_tensor_whose_record_has_another_size_is_refused(good: Path, tmp_path: Path) -> None:
    """A storage that claims 4 MB and holds 4 bytes, and its cousins: one byte short, one too many, none at all."""
    for name, change in {
        "4 bytes": lambda r: r.update({"data/0": bytes(4)}),
        "short": lambda r: r.update({"data/0": r["data/0"][:-1]}),
        "long": lambda r: r.update({"data/0": r["data/0"] + b"\0"}),
        "gone": lambda r: r.pop("data/0"),
        "empty": lambda r: r.update({"data/0": b""}),
    }.items():
        assert re.search("size that its pickle says|damaged", refusal(rewrite(good, tmp_path / "evil.pt", change))), (
            name
        )


def edit_pickle(old: bytes, new: bytes, count: int = 1) -> Callable[[dict[str, bytes]], None]:
    def change(records: dict[str, bytes]) -> None:
        assert old in records["data.pkl"]
        records["data.pkl"] = records["data.pkl"].replace(old, new, count)

    return change


FIRST_CONVOLUTION = b"(K\x08K\x03K\x06K\x06t"  # its shape: 8 channels out, 3 in, 6x6
EDITED_PICKLES = {
    "shape of another size": (FIRST_CONVOLUTION, b"(K\x08K\x03K\x06K\x07t", "shape"),
    "huge shape": (FIRST_CONVOLUTION, b"(J\xff\xff\xff\x7fK\x03K\x06K\x06t", "not a YOLOv5 P5 size"),
    "negative shape": (FIRST_CONVOLUTION, b"(J\xf8\xff\xff\xffK\x03K\x06K\x06t", "impossible shape"),
    "stride that leaves the record": (b"(KlK$K\x06K\x01t", b"(K\xffK$K\x06K\x01t", "damaged"),
    "negative stride": (b"(KlK$K\x06K\x01t", b"(J\xff\xff\xff\xffK$K\x06K\x01t", "impossible shape"),
    "huge stride": (b"(KlK$K\x06K\x01t", b"(\x8a\x09" + b"\xff" * 8 + b"\x00K$K\x06K\x01t", "damaged|no checkpoint"),
    "shape of dicts": (FIRST_CONVOLUTION, b"(}K\x03K\x06K\x06t", "only a int"),
    "segmentation model": (b"cmodels.yolo\nModel\n", b"cmodels.yolo\nSegmentationModel\n", "models.yolo.Segmentation"),
    "other activation": (b"modules.activation\nSiLU\n", b"modules.activation\nReLU\n", "activation.ReLU"),
    "other layer in its place": (b"cmodels.common\nSPPF\n", b"cmodels.common\nConv\n", "another Conv than in"),
}


@pytest.mark.parametrize(("old", "new", "reason"), EDITED_PICKLES.values(), ids=EDITED_PICKLES)
def test_a_pickle_that_disagrees_with_yolov5_is_refused(
    good: Path, tmp_path: Path, old: bytes, new: bytes, reason: str
) -> None:
    assert re.search(reason, refusal(rewrite(good, tmp_path / "evil.pt", edit_pickle(old, new))))


def changed(change: Callable[[Any], object]) -> yolov5.Model:
    model = networks.network()
    change(model)
    return model


OTHER_NETWORKS: dict[str, Callable[[Any], object]] = {
    "stride": lambda m: setattr(m.model[1].conv, "stride", (1, 1)),
    "padding": lambda m: setattr(m.model[1].conv, "padding", (0, 0)),
    "dilation": lambda m: setattr(m.model[1].conv, "dilation", (2, 2)),
    "epsilon": lambda m: setattr(m.model[1].bn, "eps", 1e-5),
    "pool": lambda m: setattr(m.model[9].m, "kernel_size", 7),
    "shortcut": lambda m: setattr(m.model[2].m[0], "add", False),
    "source": lambda m: setattr(m.model[12], "f", [-1, 5]),
    "upsampling": lambda m: setattr(m.model[11], "mode", "bilinear"),
    "one layer more": lambda m: m.model.append(torch.nn.SiLU()),
    "bias": lambda m: setattr(m.model[1], "conv", torch.nn.Conv2d(8, 16, 3, 2, 1)),
    "too wide": lambda m: setattr(m.model[0], "conv", torch.nn.Conv2d(3, 4000, 1)),
}


@pytest.mark.parametrize("change", OTHER_NETWORKS.values(), ids=OTHER_NETWORKS)
def test_a_network_that_computes_something_else_is_refused(tmp_path: Path, change: Callable[[Any], object]) -> None:
    """Its numbers would be taken and its arithmetic not: it would load and see nobody."""
    networks.save_official(changed(change), tmp_path / "other.pt")
    assert "YOLOv5" in refusal(tmp_path / "other.pt")


# --- hostile zips ---------------------------------------------------------------------------------------------------


def duplicate(path: Path) -> Path:
    write(path, {"archive/data.pkl": NO_TENSOR, "archive/data.pk2": NO_TENSOR})
    path.write_bytes(path.read_bytes().replace(b"data.pk2", b"data.pkl"))
    return path


def deflated(path: Path) -> Path:
    """A bomb: 64 MB of zeros in 64 KB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", NO_TENSOR)
        with archive.open("archive/data/0", "w") as record:
            for _ in range(64):
                record.write(bytes(1 << 20))
    return path


def patched(path: Path, offset_from_directory: int, value: bytes) -> Path:
    """A zip whose first directory entry says something else."""
    write(path, {"archive/data.pkl": NO_TENSOR, "archive/data/0": bytes(100)})
    body = bytearray(path.read_bytes())
    place = body.index(b"PK\1\2") + offset_from_directory
    body[place : place + len(value)] = value
    path.write_bytes(body)
    return path


def huge_directory(path: Path) -> Path:
    return write(path, {f"archive/data/{i}": b"" for i in range(20_000)} | {"archive/data.pkl": NO_TENSOR})


def legacy(path: Path) -> Path:
    torch.save({"model": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    return path


def two_folders(path: Path) -> Path:
    return write(path, {"archive/data.pkl": NO_TENSOR, "other/data/0": b""})


HOSTILE_ZIPS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "same name twice": (duplicate, "same name"),
    "compressed bomb": (deflated, "compressed"),
    "sizes that differ": (lambda p: patched(p, 24, struct.pack("<I", 1 << 30)), "compressed"),
    "encrypted": (lambda p: patched(p, 8, b"\1\0"), "no checkpoint"),
    "many records": (huge_directory, "zip directory has"),
    "overlapping records": (lambda p: patched(p, 20, struct.pack("<2I", 1 << 20, 1 << 20)), "overlap"),
    "path out of the folder": (lambda p: write(p, {"../../data.pkl": NO_TENSOR}), "other records"),
    "absolute path": (lambda p: write(p, {"/etc/data.pkl": NO_TENSOR}), "other records"),
    "something else beside": (lambda p: write(p, {"a/data.pkl": NO_TENSOR, "a/code/x.py": b""}), "other records"),
    "two folders": (two_folders, "several folders"),
    "no pickle": (lambda p: write(p, {"archive/version": b"3"}), "no data.pkl"),
    "huge pickle": (lambda p: write(p, {"archive/data.pkl": bytes(2 << 20)}), "data.pkl has more"),
    "big-endian": (lambda p: write(p, {"a/data.pkl": NO_TENSOR, "a/byteorder": b"big"}), "big-endian"),
    "format before torch 1.6": (legacy, "format of torch before 1.6"),
    "bare pickle": (lambda p: (p.write_bytes(NO_TENSOR), p)[1], "no zip file"),
    "empty": (lambda p: (p.write_bytes(b""), p)[1], "no zip file"),
    "nothing in it": (lambda p: write(p, {}), "several folders"),
    "no model": (lambda p: write(p, {"archive/data.pkl": NO_TENSOR}), "no YOLOv5 detection model"),
    "a list": (lambda p: write(p, {"archive/data.pkl": pickle.dumps([], protocol=2)}), "no YOLOv5 detection model"),
}


@pytest.mark.parametrize(("make", "reason"), HOSTILE_ZIPS.values(), ids=HOSTILE_ZIPS)
def test_hostile_zips_are_refused(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    assert reason in refusal(make(tmp_path / "evil.pt"))


def test_a_file_larger_than_any_yolov5_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge.pt").open("wb") as file:
        file.truncate(checkpoint.MAX_FILE_BYTES + 1)
    assert "no YOLOv5 checkpoint has more" in refusal(tmp_path / "huge.pt")


# --- damage of any kind ---------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_pickle_with_any_bytes_changed_is_read_or_refused(good: Path, data: st.DataObject) -> None:
    with zipfile.ZipFile(good) as archive:
        body = bytearray(archive.read("small/data.pkl"))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        interpret(bytes(body))
    except (CheckpointError, LookupError, TypeError, ValueError, AttributeError):
        pass


@given(cut=st.integers(0, 200_000), flips=st.lists(st.integers(0, 1 << 20), max_size=3))
@settings(deadline=None, max_examples=60)
def test_a_file_with_any_damage_is_read_or_refused(
    good: Path, tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[int]
) -> None:
    body = bytearray(good.read_bytes())
    for place in flips:
        body[place % len(body)] ^= 0xFF
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(body[: len(body) - cut])
    try:
        yolov5.load_checkpoint(path)
    except CheckpointError:
        pass
