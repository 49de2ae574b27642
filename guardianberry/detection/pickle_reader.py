"""Interprets the pickle of a YOLOv5 checkpoint as plain data: nothing that it names is imported, called or changed.

A pickle is a program for a stack machine whose operations may import and call anything. Here 30 of its operations are
known, and the few names that YOLOv5 needs stand for inert objects. Tensors are only descriptions of where their numbers
are, so that SETITEM into a tensor, the way of CVE-2026-24747, has no meaning.
"""

import pickletools
import re
from typing import Any, NamedTuple

import numpy as np

_TORCH = "torch.nn.modules."
LAYERS = {
    **{f"models.common.{name}": name for name in ("Conv", "C3", "Bottleneck", "SPPF", "Concat")},
    **{"models.yolo.Detect": "Detect", "models.yolo.Model": "Model", "models.yolo.DetectionModel": "Model"},
    **{f"{_TORCH}container.{name}": name for name in ("Sequential", "ModuleList")},
    f"{_TORCH}conv.Conv2d": "Conv2d",
    f"{_TORCH}batchnorm.BatchNorm2d": "BatchNorm2d",
    f"{_TORCH}activation.SiLU": "SiLU",
    f"{_TORCH}pooling.MaxPool2d": "MaxPool2d",
    f"{_TORCH}upsampling.Upsample": "Upsample",
}
NUMBERS: dict[str, np.dtype[Any]] = {
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.LongStorage": np.dtype("<i8"),
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class CheckpointError(ValueError):
    """The file is not a YOLOv5 checkpoint that can be used; the message says why."""


class Layer:
    """What the file says of one module: its class, and its attributes by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: dict[str, Any] = {}


class Storage(NamedTuple):
    """`length` numbers in the zip's record data/`key`."""

    key: str
    dtype: np.dtype[Any]
    length: int


class TensorInFile(NamedTuple):
    """A view of a storage; offset and strides count numbers. Whether it lies inside is not checked here."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Name(NamedTuple):
    """What the pickle wants imported."""

    text: str


def interpret(data: bytes) -> Any:
    """What the pickle `data` holds, as dicts, lists, tuples, numbers, texts, `Layer`s and `TensorInFile`s.

    Raises CheckpointError, and LookupError, TypeError, ValueError and AttributeError where the pickle is damaged.
    """
    machine = _Machine()
    for operation, argument, _ in pickletools.genops(data):
        if operation.name == "STOP":
            return machine.stack.pop()
        machine.step(operation.name, argument)
    raise CheckpointError("its pickle has no end")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def step(self, operation: str, argument: Any) -> None:
        """One operation of protocol 2, which torch.save writes; pickletools documents each."""
        stack = self.stack
        match operation:
            case "PROTO" if argument == 2:
                pass
            case "MARK":
                self.marks.append(len(stack))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                stack.append(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(reversed([stack.pop() for _ in range(int(operation[-1]))])))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "APPEND":
                item = stack.pop()
                _exact(list, stack[-1]).append(item)
            case "APPENDS":
                items = self.pop_to_mark()
                _exact(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "GLOBAL":
                stack.append(_Name(argument.replace(" ", ".", 1)))
            case "NEWOBJ":
                arguments, name = stack.pop(), _exact(_Name, stack.pop()).text
                stack.append(_make(name, arguments))
            case "REDUCE":
                arguments, name = _exact(tuple, stack.pop()), _exact(_Name, stack.pop()).text
                stack.append(_call(name, arguments))
            case "BUILD":
                state = _exact(dict, stack.pop())
                _exact(Layer, stack[-1]).state = state
            case "BINPERSID":
                stack.append(_storage(*_exact(tuple, stack.pop())))
            case _ if operation in _LITERALS:
                stack.append(argument)
            case _ if operation in _CONSTANTS:
                stack.append(_CONSTANTS[operation])
            case _:
                raise CheckpointError(f"its pickle uses {operation}, which no YOLOv5 model needs")

    def pop_to_mark(self) -> list[Any]:
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def set_items(self, items: list[Any]) -> None:
        target = _exact(dict, self.stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_exact(str, key) if isinstance(key, str) else _exact(int, key)] = value


def _make(name: str, arguments: Any) -> Layer:
    if name not in LAYERS or arguments != ():
        raise CheckpointError(f"it holds a {name}, which no YOLOv5 detection model needs")
    return Layer(LAYERS[name])


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    """What the call of a known function would give, without a call."""
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "__builtin__.set", ([],):
            return []
        case "torch._utils._rebuild_tensor_v2", (Storage() as storage, offset, tuple(shape), tuple(stride), *_):
            if len(shape) != len(stride) or any(_exact(int, count) < 0 for count in (offset, *shape, *stride)):
                raise CheckpointError("one of its tensors has an impossible shape")
            return TensorInFile(storage, offset, shape, stride)
        case "torch._utils._rebuild_parameter", (TensorInFile() as tensor, *_):
            return tensor
    raise CheckpointError(f"it calls {name}, which no YOLOv5 detection model needs")


def _storage(word: str, name: _Name, key: str, _: str, length: int) -> Storage:
    if word != "storage" or not re.fullmatch(r"\d{1,6}", key) or _exact(int, length) < 0:
        raise CheckpointError("one of its tensors is stored in an unknown way")
    return Storage(key, NUMBERS[_exact(_Name, name).text], length)


def _exact(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise CheckpointError(f"its pickle has a {type(value).__name__} where only a {kind.__name__} can be")
    return value
