"""YAML text as plain values with their line numbers.

A policy may use only a part of YAML: text, numbers, true and false, null, lists, and mappings with
text keys. Aliases are refused, because a few lines of them can expand to billions of values. Tags
are refused, because they can name other types. Dates stay text: no field is a date, and a JSON
Schema has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from deadlinemesh.policy.problems import Loc, PolicyError, Problem, dotted

__all__ = ["MAX_SIZE", "Source", "read"]

MAX_SIZE = 1024 * 1024
"""Bytes of a policy file, and characters of its text, at most."""

# Levels of nesting: more than any policy needs, and few enough for every recursive function.
_MAX_DEPTH = 32

_LONGEST_NUMBER = 400
"""Characters of a number. The largest float has 309 digits. Much longer numbers can be neither
printed nor computed with."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = {f"{_TAG}{kind}": kind for kind in ("str", "int", "float", "bool", "null")}
_READ_AS = {"int": "a number", "float": "a number", "bool": "true or false", "null": "an empty value"}


@dataclass(frozen=True, slots=True)
class Source:
    """The values of a document, their lines, and its problems as YAML."""

    data: Any
    """The readable values: dicts, lists and scalars."""
    problems: tuple[Problem, ...]
    unreadable: frozenset[Loc]
    """Places of values that have a problem here. Other errors about them only follow from it."""
    _values: dict[Loc, int]
    _keys: dict[Loc, int]

    @property
    def places(self) -> Iterable[Loc]:
        """The places of all values."""
        return self._values

    def line_of(self, loc: Loc, *, at_key: bool = False) -> int:
        """The line of the value, or of its key.

        For a missing value it is the line of the nearest mapping's key.
        """
        if loc in self._values and not at_key:
            return self._values[loc]
        while loc and loc not in self._keys:
            loc = loc[:-1]
        return self._keys.get(loc) or self._values.get(loc, 1)


def read(text: str, name: str) -> Source:
    """Read the text.

    Raises PolicyError if it is not YAML, has an alias, is empty or is too long.
    """
    if len(text) > MAX_SIZE:
        raise PolicyError([Problem(name, 0, "", "is larger than 1 MiB: no policy is")])
    try:
        loader = _Loader(text, name)
        root = _root(loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise PolicyError([Problem(name, line, "", f"cannot be read as YAML: {reason}")]) from error
    except yaml.reader.ReaderError as error:
        reason = f"cannot be read as YAML: the character U+{ord(text[error.position]):04X} is not allowed"
        raise PolicyError([Problem(name, text.count("\n", 0, error.position) + 1, "", reason)]) from error
    if loader.refused:
        raise PolicyError(loader.refused)
    if root is None:
        raise PolicyError([Problem(name, 1, "", "is empty: a policy has at least tiers, tenants and models")])
    walk = _Walk(name, loader)
    data = walk.value(root, ())
    return Source(data, tuple(walk.problems), frozenset(walk.unreadable), walk.values, walk.keys)


def _root(loader: _Loader) -> yaml.Node | None:
    try:
        return loader.get_single_node()
    except (ValueError, OverflowError) as error:  # from PyYAML, for an escape such as "\UFFFFFFFF"
        raise yaml.MarkedYAMLError(None, None, "an escape names no character", loader.get_mark()) from error


class _Loader(yaml.SafeLoader):
    """A YAML loader that composes nodes and constructs only scalars."""

    def __init__(self, text: str, name: str) -> None:
        self.yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in resolvers if tag in _SCALARS]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        self._file = name
        self._depth = 0
        self.refused: list[Problem] = []
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        events: Any = self  # the stubs leave the parser's methods untyped
        event = events.peek_event()
        if isinstance(event, yaml.AliasEvent):
            events.get_event()
            mark: Any = event.start_mark
            reason = f"the alias *{event.anchor} is refused: write the value out"
            self.refused.append(Problem(self._file, mark.line + 1, "", reason))
            return yaml.ScalarNode(f"{_TAG}null", "", mark, mark)
        if self._depth == _MAX_DEPTH:
            problem = f"values are nested more than {_MAX_DEPTH} deep"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


@dataclass(slots=True)
class _Walk:
    name: str
    loader: _Loader
    problems: list[Problem] = field(default_factory=list)
    unreadable: set[Loc] = field(default_factory=set)
    values: dict[Loc, int] = field(default_factory=dict)
    keys: dict[Loc, int] = field(default_factory=dict)

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        self.values[loc] = _line(node)
        if isinstance(node, yaml.MappingNode):
            self._refuse_tag(node, loc, f"{_TAG}map")
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            self._refuse_tag(node, loc, f"{_TAG}seq")
            return [self.value(item, (*loc, index)) for index, item in enumerate(node.value)]
        if self._refuse_tag(node, loc, *_SCALARS):
            return None
        kind = _SCALARS[node.tag]
        try:
            if kind in ("int", "float") and len(node.value) > _LONGEST_NUMBER:
                raise ValueError
            return self.loader.construct_object(node)
        # Errors of PyYAML's constructors for `!!int x`, `!!bool x` and a too large float.
        except (ValueError, LookupError, OverflowError):
            self._problem(node, loc, f"cannot be read as {_READ_AS[kind]}")
            self.unreadable.add(loc)
            return None

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, loc, "has a key that is not a text")
                continue
            key = key_node.value
            here = (*loc, key)
            if key in found:
                self._problem(key_node, here, f"is given twice: the first is on line {self.keys[here]}")
                continue
            if not self._refuse_tag(key_node, here, *_SCALARS) and _SCALARS[key_node.tag] != "str":
                read_as = _READ_AS[_SCALARS[key_node.tag]]
                self._problem(key_node, here, f"this key is read as {read_as}: put it in quotes")
            self.keys[here] = _line(key_node)
            found[key] = self.value(value_node, here)
        return found

    def _refuse_tag(self, node: yaml.Node, loc: Loc, *allowed: str) -> bool:
        if node.tag in allowed:
            return False
        self._problem(node, loc, f"the tag {node.tag.replace(_TAG, '!!')} is refused: write the plain value")
        self.unreadable.add(loc)
        return True

    def _problem(self, node: yaml.Node, loc: Loc, reason: str) -> None:
        self.problems.append(Problem(self.name, _line(node), dotted(loc), reason))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
