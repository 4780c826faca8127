"""Reading pickles without running them.

A pickle is a program for a stack machine whose instructions may import and call anything. The
machine here knows only those instructions that weights files need, and none of them imports or
calls: a name stays a ``Global``, a call a ``Call``, an object an ``Instance``. The result is a tree
of inert records, lists, tuples, dicts and numbers; whoever asked for it decides what they mean.

Time and memory are linear in the length of the pickle, whatever its content: lengths and memo
numbers in the file allocate nothing, and dict keys are texts, whose hashes nobody can foresee. What
a dict holds under another key, such as a tuple, is left out.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO, cast

from sdpy.checkpoints.limits import MAX_ENTRIES, MAX_NAME_LENGTH, check_name

MAX_PICKLE_BYTES = 16 * 2**20
"""Stable Diffusion's largest pickle has 0.1 MB."""
MAX_INSTRUCTIONS = 2_000_000
"""A tensor takes about 30."""


@dataclass(frozen=True)
class Global:
    """The name of a class or function."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False)
class Call:
    """A call that the pickle asks for and that nobody made."""

    function: Global
    arguments: tuple[Any, ...]


@dataclass(eq=False)
class Instance:
    """An object that the pickle describes: its class and the attributes set on it."""

    cls: Global
    state: Any = field(default=None)


@dataclass(frozen=True, eq=False)
class Reference:
    """A persistent id: what the pickle keeps elsewhere, such as a tensor's storage."""

    id: Any


class _Mark:
    """The single value that marks where a run of arguments starts on the stack."""


_MARK = _Mark()
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
    "SHORT_BINBYTES",
}
_TEXTS = {"BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE"}
_WITHOUT_EFFECT = {"PROTO", "FRAME"}
_PUTS = {"BINPUT", "LONG_BINPUT"}
_GETS = {"BINGET", "LONG_BINGET"}
_DICTS = {("collections", "OrderedDict"), ("collections", "defaultdict")}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load_inert(
    data: bytes | BinaryIO,
    allowed: Callable[[str, str], bool],
    persistent: Callable[[Any], Any] = Reference,
) -> Any:
    """The tree that a pickle (protocol 2 to 5) describes, without importing or calling anything.

    Args:
        data: the pickle, or a file at the start of one, which is read to the pickle's end.
        allowed: whether a pickle of this kind may name ``(module, name)``. It only names it; a
            name that has no business there shows that the file is not what it claims to be.
        persistent: what to put in the place of a persistent id.

    Raises:
        ValueError: for an instruction or a name that weights files do not need, and for nonsense.
        IndexError, KeyError: for a pickle that takes more than it has put.
    """
    machine = _Machine(allowed, persistent)
    stream = _Bounded(io.BytesIO(data) if isinstance(data, bytes) else data)
    for opcode, argument, _ in islice(pickletools.genops(cast(BinaryIO, stream)), MAX_INSTRUCTIONS):
        if opcode.name == "STOP":
            return machine.pop()
        machine.step(opcode.name, argument)
    raise ValueError("the pickle ends early, or never")


class _Bounded:
    """A file of which each piece that is read, and all of them together, are bounded."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MAX_PICKLE_BYTES

    def read(self, size: int) -> bytes:
        self._take(size)
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(MAX_NAME_LENGTH)
        self._take(len(line))
        return line

    def tell(self) -> int:
        return self._file.tell()

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError("the pickle is longer than any real one")


def named_leaves(root: Any, items: Callable[[Any], Any]) -> Iterator[tuple[str, Any]]:
    """What nested dicts hold, with dotted names in the file's order. One met again is left out.

    Args:
        root: what `load_inert` gave.
        items: the dict that a value stands for, or anything else.

    Raises:
        ValueError: names are longer than any real one, or more.
    """
    waiting: list[tuple[str, Any]] = [("", root)]
    seen: set[int] = set()
    while waiting:
        name, value = waiting.pop()
        held = items(value)
        if not isinstance(held, dict):
            yield name, value
        elif id(held) not in seen:
            seen.add(id(held))
            prefix = f"{name}." if name else ""
            for key in held:
                check_name(prefix, key)
            waiting += reversed([(f"{prefix}{key}", one) for key, one in held.items()])
        if len(waiting) > MAX_ENTRIES:
            raise ValueError("its dicts have more entries than any real one")


class _Machine:
    def __init__(
        self, allowed: Callable[[str, str], bool], persistent: Callable[[Any], Any]
    ) -> None:
        self.allowed = allowed
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _LITERALS:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in _TEXTS:
            argument.encode()  # raises ValueError for halves of characters
            stack.append(argument)
        elif opcode in _PUTS:
            self.memo[argument] = self.top()
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif opcode in _GETS:
            stack.append(self.memo[argument])
        elif opcode == "MARK":
            stack.append(_MARK)
        elif opcode in _TUPLES:
            stack.append(tuple(reversed([self.pop() for _ in range(_TUPLES[opcode])])))
        elif opcode == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif opcode == "APPEND":
            self.extend([self.pop()])
        elif opcode in ("APPENDS", "ADDITEMS"):
            self.extend(self.pop_to_mark())
        elif opcode == "SETITEM":
            value, key = self.pop(), self.pop()
            self.update([key, value])
        elif opcode == "SETITEMS":
            self.update(self.pop_to_mark())
        elif opcode == "GLOBAL":
            self.name(*argument.split(" ", 1))
        elif opcode == "FROZENSET":
            stack.append(self.pop_to_mark())
        elif opcode == "STACK_GLOBAL":
            name, module = self.pop(), self.pop()
            self.name(module, name)
        elif opcode == "BINPERSID":
            stack.append(self.persistent(self.pop()))
        elif opcode == "NEWOBJ":
            self.instantiate()
        elif opcode == "REDUCE":
            self.reduce()
        elif opcode == "BUILD":
            self.build()
        elif opcode not in _WITHOUT_EFFECT:
            raise ValueError(f"the pickle instruction {opcode} has no business in a weights file")

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise ValueError("the pickle misplaces a mark")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        self.stack.pop()
        return value

    def pop_to_mark(self) -> list[Any]:
        values = []
        while self.stack[-1] is not _MARK:
            values.append(self.stack.pop())
        self.stack.pop()
        return values[::-1]

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, (Call, Instance)):  # such as a deque, of no use to anybody
            raise ValueError("the pickle appends to something that is no list")

    def update(self, items: list[Any]) -> None:
        target = self.top()
        if len(items) % 2 or not isinstance(target, (dict, Call, Instance)):
            raise ValueError("the pickle sets items of something that is no dict")
        if not isinstance(target, dict):
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, (str, Global)) or (isinstance(key, int) and abs(key) < 2**64):
                target[str(key)] = value

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("the pickle names something by what is no text")
        if not self.allowed(module, name):
            raise ValueError(
                f"it asks for {module}.{name}, which no such file needs; do not use it"
            )
        self.stack.append(Global(module, name))

    def instantiate(self) -> None:
        arguments, cls = self.pop(), self.pop()
        if not isinstance(cls, Global) or not isinstance(arguments, tuple):
            raise ValueError("the pickle makes an object in an unknown way")
        self.stack.append({} if (cls.module, cls.name) in _DICTS else Instance(cls))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError("the pickle calls something that is no function")
        if (function.module, function.name) not in _DICTS or len(arguments) > 1:
            self.stack.append(Call(function, arguments))
            return
        self.stack.append({})
        if arguments and isinstance(arguments[0], list):  # Python 2's OrderedDict
            self.update([part for pair in arguments[0] for part in pair])

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Instance):
            target.state = state
        elif not isinstance(target, (dict, Call)):  # their attributes are of no use to anybody
            raise ValueError("the pickle sets attributes of something that is no object")
