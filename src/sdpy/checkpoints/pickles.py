"""Reading pickles without running them.

A pickle is a program for a stack machine whose instructions may import and call anything. The
machine here knows only those instructions that weights files need, and none of them imports or
calls: a name stays a ``Global``, a call a ``Call``, an object an ``Instance``. The result is a tree
of inert records, lists, tuples, dicts and numbers; whoever asked for it decides what they mean.

Time and memory are linear in the length of the pickle, whatever its content: lengths and memo
numbers in the file allocate nothing, and dict keys are strings, integers or names, whose hashes are
cheap.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO


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
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load_inert(
    data: bytes | BinaryIO,
    allowed: Callable[[str, str], bool],
    persistent: Callable[[Any], Any] = Reference,
) -> Any:
    """The tree that a pickle (protocol 2) describes, without importing or calling anything.

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
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            return machine.pop()
        machine.step(opcode.name, argument)
    raise ValueError("the pickle ends early")


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
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif opcode == "MARK":
            stack.append(_MARK)
        elif opcode in _TUPLES:
            stack.append(tuple(reversed([self.pop() for _ in range(_TUPLES[opcode])])))
        elif opcode == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif opcode == "APPEND":
            self.extend([self.pop()])
        elif opcode == "APPENDS":
            self.extend(self.pop_to_mark())
        elif opcode == "SETITEM":
            value, key = self.pop(), self.pop()
            self.update([key, value])
        elif opcode == "SETITEMS":
            self.update(self.pop_to_mark())
        elif opcode == "GLOBAL":
            self.name(*argument.split(" ", 1))
        elif opcode == "BINPERSID":
            stack.append(self.persistent(self.pop()))
        elif opcode == "NEWOBJ":
            self.instantiate()
        elif opcode == "REDUCE":
            self.reduce()
        elif opcode == "BUILD":
            self.build()
        elif opcode != "PROTO":
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
        if not isinstance(target, list):
            raise ValueError("the pickle appends to something that is no list")
        target.extend(values)

    def update(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("the pickle sets items of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int, Global)):
                raise ValueError("the pickle has a dict key that is neither text nor number")
            target[key] = value

    def name(self, module: str, name: str) -> None:
        if not self.allowed(module, name):
            raise ValueError(
                f"it asks for {module}.{name}, which no such file needs; do not use it"
            )
        self.stack.append(Global(module, name))

    def instantiate(self) -> None:
        arguments, cls = self.pop(), self.pop()
        if not isinstance(cls, Global) or arguments != ():
            raise ValueError("the pickle makes an object in an unknown way")
        self.stack.append(Instance(cls))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError("the pickle calls something that is no function")
        ordered_dict = function == Global("collections", "OrderedDict") and arguments == ()
        self.stack.append({} if ordered_dict else Call(function, arguments))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Instance):
            target.state = state
        elif not isinstance(target, (dict, Call)):  # their attributes are of no use to anybody
            raise ValueError("the pickle sets attributes of something that is no object")
