"""Mutations that keep JSON lines what they are: bytes changed at random would hardly ever be JSON again."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

__all__ = ["mutated"]

Mutate = Callable[[bytes, int], bytes]
"""libFuzzer's own mutation of at most so many bytes."""

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "a", "\ud83d", "\udc00", "\x00", "é" * 99, " ", "{}", "[]", "null", [], {}, [[]], {"": {}}, [None]),
)
_NESTED = 300
_PLAIN = 0.2
"""The part of mutations that are left to libFuzzer."""


def mutated(data: bytes, most: int, seed: int, mutate: Mutate) -> bytes:
    """`data` with one of its JSON values changed, or one of its lines. Never more than `most` bytes."""
    chance = random.Random(seed)
    if chance.random() < _PLAIN:
        return mutate(data, most)
    lines = []
    for line in data.splitlines():
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            lines.append(None)
    try:
        for _ in range(chance.randint(1, 3)):
            lines = _changed(lines, chance, most, mutate)
    except RecursionError:
        return mutate(data, most)
    made = "\n".join(_written(line) for line in lines).encode(errors="surrogatepass")
    return made if len(made) <= most else mutate(data, most)


def _written(value: Any) -> str:
    try:
        return json.dumps(value)
    except (ValueError, RecursionError):
        return "null"


def _changed(lines: list[Any], chance: random.Random, most: int, mutate: Mutate) -> list[Any]:
    places = list(_places(lines, []))
    holder, key = chance.choice(places) if places else (lines, None)
    if key is None:
        return [*lines, _odd(chance)]
    match chance.randrange(9):
        case 0:
            holder[key] = _odd(chance)
        case 1:
            del holder[key]
        case 2 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 3:  # a value from elsewhere
            other, place = chance.choice(places)
            holder[key] = copy.deepcopy(other[place])
        case 4 if isinstance(holder, dict):  # a name from elsewhere
            names = [place for _, place in places if isinstance(place, str)]
            holder[chance.choice(names)] = copy.deepcopy(holder[key])
        case 5 if isinstance(holder[key], (str, list)):
            times = min(chance.choice((2, 10, 100)), most // len(_written(holder[key])))
            holder[key] = _repeated(holder[key], times)
        case 6:
            value: Any = holder[key]
            for _ in range(chance.choice((1, 2, _NESTED))):
                value = [value] if chance.random() < 0.5 else {"a": value}
            holder[key] = value
        case _:
            holder[key] = _other(holder[key], chance, mutate)
    return lines


def _odd(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(_ODD))


def _repeated(value: Any, times: int) -> Any:
    return value * times if isinstance(value, str) else [copy.deepcopy(one) for _ in range(times) for one in value]


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Where there is a value: what holds it, and its key or index."""
    walk = [value]
    while walk:
        holder = walk.pop()
        keys = holder if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                walk.append(holder[key])
    return found


def _other(value: Any, chance: random.Random, mutate: Mutate) -> Any:
    """A value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return value + chance.choice((-1, 1, 10, -value, value, 10**12))
        case float():
            return value * chance.choice((-1.0, 0.5, 10.0, 1e300))
        case str():
            raw = value.encode(errors="surrogatepass")
            return mutate(raw, len(raw) + 20).decode(errors="replace")
        case list():
            return chance.sample(value, len(value))
        case dict():
            return {name: value[name] for name in chance.sample(list(value), len(value))}
        case _:
            return _odd(chance)
