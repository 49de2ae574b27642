"""Reads a YOLOv5 checkpoint without torch, and without running anything in it.

A checkpoint is a zip: `data.pkl`, a pickle of whole module objects, and one record of numbers a tensor, `data/0` and so
on. torch does not read it, because `torch.load(weights_only=True)` before torch 2.10 can be made to write outside a
tensor (CVE-2026-24747), and the torch that runs on every Pi is older.
"""

import contextlib
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from guardianberry.detection.pickle_reader import CheckpointError, TensorInFile, interpret

MAX_FILE_BYTES = 400 << 20  # yolov5x.pt, the largest, has 166 MiB
MAX_DIRECTORY_BYTES = 1 << 20  # of the zip: 0.02 MB in yolov5n.pt, three times that in yolov5x.pt
MAX_PICKLE_BYTES = 1 << 20  # 0.08 MB in yolov5n.pt, 0.3 MB in yolov5x.pt
RECORD_NAME = re.compile(r"[^/\\]+/(data\.pkl|version|byteorder|data/\d{1,6}|\.[a-z_]+|\.data/\w+)")


class Checkpoint:
    """An open checkpoint: `root` is its pickle as dicts, lists, numbers, strings, `Layer`s and `TensorInFile`s.

    It reads from `file` as long as it lives. Raises CheckpointError and OSError.
    """

    def __init__(self, file: BinaryIO) -> None:
        with _explained():
            file_bytes = _check_directory(file)
            self._zip = zipfile.ZipFile(file)
            self._records = {info.filename: info for info in self._zip.infolist()}
            self._prefix = self._check_records(file_bytes)
            self.root = interpret(self._record("data.pkl"))

    def _check_records(self, file_bytes: int) -> str:
        """The folder that all records are in; CheckpointError where torch.save would not have written them so."""
        infos = self._zip.infolist()
        if len(infos) != len(self._records):
            raise CheckpointError("two of its records have the same name")
        if not all(RECORD_NAME.fullmatch(info.filename) for info in infos):
            raise CheckpointError("it holds other records than a checkpoint does")
        if any(info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size for info in infos):
            raise CheckpointError("its records are compressed, which torch.save does not do")
        if sum(info.file_size for info in infos) > file_bytes:
            raise CheckpointError("its records overlap")
        prefixes = {info.filename.partition("/")[0] for info in infos}
        if len(prefixes) != 1:
            raise CheckpointError("its records are in several folders")
        prefix = prefixes.pop()
        if f"{prefix}/byteorder" in self._records and self._zip.read(f"{prefix}/byteorder") != b"little":
            raise CheckpointError("its numbers are big-endian")
        if f"{prefix}/data.pkl" not in self._records:
            raise CheckpointError("it holds no data.pkl")
        if self._records[f"{prefix}/data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"its data.pkl has more than {MAX_PICKLE_BYTES} bytes")
        return prefix

    def _record(self, name: str) -> bytes:
        return self._zip.read(f"{self._prefix}/{name}")

    def read(self, tensor: TensorInFile) -> NDArray[Any]:
        """The tensor's numbers, read-only. The record must have the very size that the pickle says."""
        key, dtype, length = tensor.storage
        with _explained():
            if self._records[f"{self._prefix}/data/{key}"].file_size != length * dtype.itemsize:
                raise CheckpointError(f"its record data/{key} does not have the size that its pickle says")
            strides = tuple(step * dtype.itemsize for step in tensor.stride)
            start = tensor.offset * dtype.itemsize
            return np.ndarray(tensor.shape, dtype, self._record(f"data/{key}"), start, strides)  # raises if outside


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What the zip and pickle libraries raise for broken files, as CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, struct.error, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"it is damaged or no checkpoint ({type(error).__name__}: {error})") from error
    except (RuntimeError, OverflowError) as error:  # encrypted records, too deep nesting
        raise CheckpointError(f"it is no checkpoint ({type(error).__name__}: {error})") from error


def _check_directory(file: BinaryIO) -> int:
    """The size of the file, once the size of its zip directory is bounded: zipfile reads all of that at once.

    The end of a zip gives it in the last 22 bytes and, for large files, in the 76 bytes before these.
    """
    size = file.seek(0, 2)
    if size > MAX_FILE_BYTES:
        raise CheckpointError(f"it has {size} bytes; no YOLOv5 checkpoint has more than {MAX_FILE_BYTES}")
    file.seek(max(size - 98, 0))
    end = file.read(98).rjust(98, b"\0")
    signature, _, _, _, _, directory_bytes, _, comment_bytes = struct.unpack("<4s4H2LH", end[76:])
    if signature != b"PK\5\6" or comment_bytes:
        raise CheckpointError("it is no zip file: the format of torch before 1.6, or damaged")
    if end[56:60] == b"PK\6\7":
        directory_bytes = max(directory_bytes, struct.unpack("<Q", end[40:48])[0])
    if directory_bytes > MAX_DIRECTORY_BYTES:
        raise CheckpointError(f"its zip directory has {directory_bytes} bytes, more than {MAX_DIRECTORY_BYTES}")
    return size
