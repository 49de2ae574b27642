"""A trained difference to an official checkpoint, as a file that is useless without that checkpoint.

An .npz: `official_sha256`, and one entry a tensor of the network cut down to the person, by the tensor's name in the
checkpoint. Convolutions hold int8 steps [out, in, height, width], with their size a filter beside
them as NAME.step (half precision, [out]); everything else is a difference in half precision.
"""

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

STEP_SUFFIX = ".step"
MAX_BYTES = 2 << 20  # of the file: 1.4 MB in yolov5n-night.npz
MAX_UNPACKED_BYTES = 8 << 20  # of all arrays as they are stored: 1.8 MB there


def adapter_path(official: Path) -> Path:
    """Where the adapter for an official checkpoint lies: beside it."""
    return official.with_name(f"{official.stem}-night.npz")


def adapted_name(official: Path) -> str:
    """What the adapted model is called in the log and in the videos' metadata."""
    return f"{official.name}+night"


class AdapterError(ValueError):
    """The file is no adapter, or not one for this checkpoint; the message says why."""


class Adapter(NamedTuple):
    """What a file holds: float32 differences by tensor name, for the checkpoint with this sha256."""

    official_sha256: str
    differences: dict[str, NDArray[np.float32]]


def read_adapter(path: Path) -> Adapter:
    """The file's content; raises AdapterError. No code in the file is run."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise AdapterError(f"{path.name} is larger than {MAX_BYTES} bytes")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
                raise AdapterError(f"{path.name} unpacks to more than {MAX_UNPACKED_BYTES} bytes")
            entries = {member.filename.removesuffix(".npy"): _read_array(archive, member) for member in members}
        official_sha256 = str(entries.pop("official_sha256"))
        steps = {name: entries.pop(name) for name in list(entries) if name.endswith(STEP_SUFFIX)}
        differences = {}
        for name, entry in entries.items():
            difference = entry.astype(np.float32)
            if entry.dtype == np.int8:
                difference *= steps[name + STEP_SUFFIX].astype(np.float32).reshape(-1, *[1] * (entry.ndim - 1))
            differences[name] = difference
    except AdapterError:
        raise
    except (OSError, EOFError, ValueError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise AdapterError(f"{path.name} is no adapter: {error}") from error
    return Adapter(official_sha256, differences)


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Takes no more memory than the zip's header says, whatever the member holds; np.load trusts the array's header.

    Raises ValueError, also for Python objects: nothing is unpickled.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack all at once
        raise ValueError(f"{member.filename} is packed in another way than NumPy does it")
    with archive.open(member) as file:
        content = io.BytesIO(file.read(member.file_size))  # without the size it would unpack to the end
    if np.lib.format.read_magic(content) != (1, 0):
        raise ValueError(f"{member.filename} has another version than NumPy writes")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(content)
    values = content.read()
    if math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f"{member.filename} has another size than its header says")
    return np.frombuffer(values, dtype).reshape(shape, order="F" if is_fortran else "C")
