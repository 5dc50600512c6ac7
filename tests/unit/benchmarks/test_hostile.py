"""The pure parts of `dmesh bench hostile`: its table of attacks, what its peer writes and reads, and what it lets pass."""

from __future__ import annotations

import asyncio
import math

import pytest
from benchmarks.hostile.attacker import Attacker, Call, Target
from benchmarks.hostile.attacks import ATTACKS, RAW, TENANTS
from benchmarks.hostile.bench import BARS, judged, measured
from benchmarks.hostile.raw_peer import Kind, frame, literal, literals, message, request

QUIET = {"memory_mb": 1.0, "goodput_kept": 1.0, "p99_ratio": 1.0, "lag_ms": 0.0, "drain_s": 0.5}


def test_every_attack_says_what_it_sends() -> None:
    assert all(attack.what and attack.per_s > 0 and attack.count > 0 for attack in (*RAW, *TENANTS))
    assert len({attack.name for attack in (*RAW, *TENANTS)}) == len(RAW) + len(TENANTS)


def test_mixtures_play_every_attack() -> None:
    names = {attack.name for attack in (*RAW, *TENANTS)}
    assert {attack.name for attack in ATTACKS["everything"]} == names


async def test_unknown_attack_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"nonsense: no such attack; there are watch-without-window, "):
        await measured(["nonsense"], 1.0, 1)


def test_quiet_attack_holds() -> None:
    assert all(one["holds"] for one in judged("quiet", QUIET))


@pytest.mark.parametrize(
    "figure", [{"memory_mb": 31.0}, {"goodput_kept": 0.94}, {"p99_ratio": 2.1}, {"lag_ms": 101.0}, {"drain_s": 4.1}]
)
def test_each_figure_has_its_bar(figure: dict[str, float]) -> None:
    broken = [one["what"] for one in judged("loud", {**QUIET, **figure}) if not one["holds"]]
    assert broken == [f"loud: {name}" for name in figure]
    assert BARS.keys() == QUIET.keys()


def test_frame_begins_with_its_length() -> None:
    assert frame(Kind.PING, 0, bytes(8), flags=1) == b"\x00\x00\x08\x06\x01" + bytes(12)
    assert message(b"abc") == b"\x00\x00\x00\x00\x03abc"


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 16_384, 70_000])
def test_literal_is_read_as_it_was_written(length: int) -> None:
    assert literals(literal("x-name", "v" * length)) == {"x-name": "v" * length}


def test_headers_of_a_call_are_written_out() -> None:
    found = literals(request("/pkg.Service/Method", [("authorization", "Bearer key")]))
    assert found[":path"] == "/pkg.Service/Method"
    assert found["authorization"] == "Bearer key"


@pytest.mark.parametrize("cut", range(0, 24, 3))
def test_cut_header_block_is_read_as_far_as_it_goes(cut: int) -> None:
    block = b"\x88" + literal("grpc-status", "4") + b"\x3f\xe1\x1f" + literal("x", "y")
    assert literals(block[:cut]).keys() <= {"grpc-status", "x", ""}
    assert literals(block) == {"grpc-status": "4", "x": "y"}


async def test_attacker_sends_no_more_than_its_count() -> None:
    call = Call("/pkg.Service/Method", b"")
    async with Attacker(Target(0, (), call, call), math.inf, count=3) as attacker:
        async with asyncio.timeout(5):
            turns = [await attacker.turn() for _ in range(5)]
    assert turns == [True, True, True, False, False]
    assert attacker.is_spent
