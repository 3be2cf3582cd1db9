"""What Python code does, read from its code objects: what it is, what it refers to and what it stores.

Source text is not used. A worker does not have that of a notebook's classes, a file may have changed since it was
loaded, and of two classes of one name in one file only one is found. Code objects are what runs, and a worker has them.
"""

import dis
import hashlib
import types
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

MUTATING = frozenset({
    "append", "appendleft", "extend", "extendleft", "insert", "pop", "popleft", "popitem", "remove", "discard",
    "add", "update", "setdefault", "clear", "__setitem__", "__delitem__",
})  # fmt: skip
STORES = ("STORE_ATTR", "DELETE_ATTR")
OUTER = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "STORE_GLOBAL", "STORE_DEREF", "DELETE_GLOBAL")
GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF")


class References(NamedTuple):
    """What one code object, and the code objects within it, refer to.

    names: globals that are read. members: (global, attribute) that are read together, as in `module.function`.
    own: attributes of the first argument (`self`) that are read.
    stored: attributes of the first argument that are assigned or changed in place.
    changed: globals and variables of a closure that are assigned or changed in place.
    """

    names: frozenset[str]
    members: frozenset[tuple[str, str]]
    own: frozenset[str]
    stored: frozenset[str]
    changed: frozenset[str]


@lru_cache(maxsize=4096)
def code_digest(code: types.CodeType) -> str:
    """sha256 over what a code object does: instructions, constants and names, without lines and file names."""
    parts = [code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags]
    text = repr([*parts, [_constant(value) for value in code.co_consts]])
    return hashlib.sha256(text.encode()).hexdigest()


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return code_digest(value)
    if isinstance(value, frozenset):  # its order is another in every process
        return sorted(repr(_constant(each)) for each in value)
    if isinstance(value, tuple):
        return [_constant(each) for each in value]
    return f"{type(value).__name__} {value!r}"


@lru_cache(maxsize=4096)
def references(code: types.CodeType) -> References:
    """What a code object refers to and what it changes."""
    names: set[str] = set()
    members: set[tuple[str, str]] = set()
    own: set[str] = set()
    stored: set[str] = set()
    changed: set[str] = set()
    walk = _Walk(code)
    for at, step in enumerate(walk.steps):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(step.argval)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            root, first = walk.target(at)
            if root == walk.first and first:
                own.add(first)
            elif walk.steps[at - 1].opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                members.add((root, step.argval))
        elif step.opname == "STORE_FAST" and at:
            root, first = walk.target(at - 1)
            if root:
                walk.aliases[step.argval] = root, first
        for root, first in walk.changes(at):
            if root == walk.first and first:
                stored.add(first)
            elif root in walk.outer:
                changed.add(root)
    inner = [references(value) for value in code.co_consts if isinstance(value, types.CodeType)]
    return References(
        frozenset(names).union(*(each.names for each in inner)),
        frozenset(members).union(*(each.members for each in inner)),
        frozenset(own).union(*(each.own for each in inner)),
        frozenset(stored).union(*(each.stored for each in inner)),
        frozenset(changed).union(*(each.changed for each in inner)),
    )


class _Walk:
    """The instructions of one code object, and what their operands come from."""

    def __init__(self, code: types.CodeType):
        self.steps = list(dis.get_instructions(code))
        self.first = code.co_varnames[0] if code.co_argcount else ""
        self.outer = {step.argval for step in self.steps if step.opname in OUTER}
        self.aliases: dict[str, tuple[str, str]] = {}

    def changes(self, at: int) -> Iterator[tuple[str, str]]:
        """(variable, attribute) of what instruction `at` assigns or changes in place."""
        step = self.steps[at]
        if step.opname in STORES:
            end = self._augmented(at, 1) if at and self.steps[at - 1].opname == "SWAP" else at - 1
            root, first = self.target(end)
            yield root, first or step.argval
        elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            end = self._augmented(at, 2) if at and self.steps[at - 1].opname == "SWAP" else at - 1
            yield self.target(self._start(end) - 1)
        elif step.opname in ("STORE_GLOBAL", "STORE_DEREF", "DELETE_GLOBAL"):
            yield step.argval, ""
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and _mutates(step.argval):
            yield self.target(at - 1)

    def target(self, end: int) -> tuple[str, str]:
        """(variable, first attribute) of the expression that ends with this instruction, such as ("self", "cache")
        for `self.cache.rows[k]`; ("", "") for another kind of expression."""
        first = ""
        while 0 <= end < len(self.steps):
            step = self.steps[end]
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                first, end = step.argval, end - 1
            elif step.opname in ("BINARY_SUBSCR", "BINARY_OP") and step.argrepr in ("", "[]"):
                end = self._start(end - 1) - 1
                first = ""
            elif step.opname.startswith("LOAD_FAST") or step.opname in GLOBALS:
                name = step.argval[-1] if isinstance(step.argval, tuple) else step.argval
                root, earlier = self.aliases.get(name, (name, ""))
                return root, earlier or first
            else:
                break
        return "", ""

    def _start(self, end: int) -> int:
        """The first instruction of the expression whose value instruction `end` leaves on the stack."""
        total = 0
        for at in range(end, -1, -1):
            step = self.steps[at]
            total += dis.stack_effect(step.opcode, step.arg, jump=False)
            if total == 1:
                return at
        return 0

    def _augmented(self, at: int, copies: int) -> int:
        """Where the target of an augmented assignment (`self.n += 1`) ends, before it is copied."""
        while at >= copies:
            at -= 1
            if all(self.steps[at - k].opname == "COPY" and self.steps[at - k].arg == copies for k in range(copies)):
                return at - copies
        return -1


def _mutates(name: str) -> bool:
    """Whether a method of this name changes its object: those of containers, and torch's, which end in one `_`."""
    return name in MUTATING or (name.endswith("_") and not name.endswith("__"))
