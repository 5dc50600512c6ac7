"""Where a run's time went, as rows and as text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tests.support.virtual import in_virtual_time

from deadlinemesh.client import DeadlineMesh
from deadlinemesh.policy import default_policy
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.v1 import common_pb2, orchestrator_pb2
from deadlinemesh.views.waterfall import Timeline, phase_name, waterfall

ADMISSION, QUEUE = common_pb2.PHASE_ADMISSION, common_pb2.PHASE_LLM_QUEUE
STREAM, TOOL = common_pb2.PHASE_LLM_STREAM, common_pb2.PHASE_TOOL_CALL


def spends(**ms: float) -> list[common_pb2.PhaseSpend]:
    return [
        common_pb2.PhaseSpend(phase=f"PHASE_{name.upper()}", spent_us=int(value * 1000)) for name, value in ms.items()
    ]


def at(ms: float, **event: object) -> orchestrator_pb2.RunResponse:
    return orchestrator_pb2.RunResponse(elapsed_us=int(ms * 1000), **event)  # type: ignore[arg-type]


def entered(ms: float, phase: common_pb2.Phase, iteration: int = 1, **spent: float) -> orchestrator_pb2.RunResponse:
    changed = orchestrator_pb2.PhaseChanged(phase=phase, iteration=iteration, spent=spends(**spent))
    return at(ms, phase_changed=changed)


def called(ms: float, call_id: str, name: str) -> orchestrator_pb2.RunResponse:
    return at(ms, tool_call_started=orchestrator_pb2.ToolCallStarted(call=common_pb2.ToolCall(id=call_id, name=name)))


def returned(ms: float, call_id: str, name: str, took: float, status: str = "OK") -> orchestrator_pb2.RunResponse:
    ended = orchestrator_pb2.ToolCallFinished(
        call_id=call_id, name=name, elapsed_us=int(took * 1000), status=f"TOOL_STATUS_{status}"
    )
    return at(ms, tool_call_finished=ended)


def finished(
    ms: float, *, granted: float = 2000, unattributed: float = 0, **spent: float
) -> orchestrator_pb2.RunResponse:
    ledger = common_pb2.Ledger(
        granted_us=int(granted * 1000),
        elapsed_us=int(ms * 1000),
        phases=spends(**spent),
        unattributed_us=int(unattributed * 1000),
    )
    return at(ms, finished=orchestrator_pb2.RunFinished(ledger=ledger))


def timeline(*events: orchestrator_pb2.RunResponse) -> Timeline:
    gathered = Timeline()
    for event in events:
        gathered.add(event)
    return gathered


def text(gathered: Timeline, width: int = 80, *, ascii_only: bool = False) -> list[str]:
    return ["".join(span.text for span in line) for line in waterfall(gathered, width, ascii_only=ascii_only)]


STARTED = at(
    0.2,
    started=orchestrator_pb2.RunStarted(
        grant=orchestrator_pb2.Grant(granted_us=2_000_000, reserve_us=200_000, requested_us=2_000_000)
    ),
)
CUT_RUN = (
    STARTED,
    entered(100, QUEUE, admission=100),
    entered(200, STREAM, admission=100, llm_queue=100),
    called(400, "a", "crm_lookup"),
    returned(600, "a", "crm_lookup", 200),
    called(600, "b", "market_data"),
    entered(800, TOOL, admission=100, llm_queue=100, llm_stream=600),
    returned(1800, "b", "market_data", 1200, "CUT"),
    finished(1800, admission=100, llm_queue=100, llm_stream=600, tool_call=1000),
)


def test_rows_are_in_the_order_of_their_beginning_and_a_phase_comes_before_its_tools() -> None:
    rows = timeline(*CUT_RUN).rows()
    assert [(row.label, row.kind, row.start, row.duration, row.note) for row in rows] == [
        ("admission", "admission", 0.0, 0.1, ""),
        ("llm_queue", "llm_queue", 0.1, 0.1, ""),
        ("llm_stream", "llm_stream", 0.2, 0.6, ""),
        ("crm_lookup", "tool", 0.4, 0.2, ""),
        ("market_data", "tool", 0.6, 1.2, "cut"),
        ("tool_call", "tool_call", 0.8, 1.0, ""),
    ]


def test_a_phase_that_comes_back_has_a_row_each_time() -> None:
    rows = timeline(
        entered(10, STREAM, admission=10),
        entered(30, TOOL, admission=10, llm_stream=20),
        entered(60, STREAM, 2, admission=10, llm_stream=20, tool_call=30),
        finished(100, admission=10, llm_stream=60, tool_call=30),
    ).rows()
    assert [(row.label, row.duration) for row in rows] == [
        ("admission", 0.01),
        ("llm_stream", 0.02),
        ("tool_call", 0.03),
        ("llm_stream", 0.04),
    ]


def test_time_in_no_phase_is_in_no_row() -> None:
    rows = timeline(
        entered(10, STREAM, admission=10), entered(50, TOOL, admission=10, llm_stream=20), finished(60, llm_stream=20)
    ).rows()
    assert [(row.label, row.start, row.duration) for row in rows][1] == ("llm_stream", 0.01, 0.02)


def test_what_the_next_phase_was_charged_in_the_instant_of_telling_is_its_own() -> None:
    rows = timeline(
        entered(10, STREAM, admission=10, llm_stream=0.003),
        finished(30, admission=10, llm_stream=20),
    ).rows()
    assert [(row.label, row.duration) for row in rows] == [("admission", 0.01), ("llm_stream", 0.02)]


def test_a_call_whose_beginning_was_not_seen_is_placed_by_its_duration() -> None:
    rows = timeline(returned(600, "a", "crm_lookup", 200, "FAILED"), finished(700)).rows()
    assert [(row.label, round(row.start, 6), row.note) for row in rows] == [("crm_lookup", 0.4, "failed")]


def test_a_phase_of_a_newer_mesh_is_shown_by_its_number() -> None:
    assert phase_name(99) == "phase_99"
    assert phase_name(common_pb2.PHASE_WRAP_UP) == "wrap_up"


def test_the_text_has_one_time_axis() -> None:
    assert text(timeline(*CUT_RUN)) == [
        "phase / tool         start ms         ms 0                  900 ms         1.8 s",
        "admission                 0.0      100.0 ██",
        "llm_queue               100.0      100.0   ██",
        "llm_stream              200.0      600.0     █████████████",
        "  crm_lookup            400.0      200.0          ━━━━",
        "  market_data           600.0     1200.0          cut ━━━━━━━━━━━━━━━━━━━━━━━━━━",
        "tool_call               800.0     1000.0                  ██████████████████████",
        "unattributed                         0.0 0.0%",
        "elapsed                           1800.0",
        "budget 2.000 s     ███████████████████████████████████████████████████████▒▒▒▒▒▒",
        "                   spent 1.800 s, left 0.200 s; reserve 0.200 s",
    ]


def test_without_block_characters_it_is_ascii() -> None:
    assert all(line.isascii() for line in text(timeline(*CUT_RUN), ascii_only=True))


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_asked(width: int) -> None:
    long_name = "a_tool_with_a_name_of_sixty_three_characters_which_is_the_longest"
    many = timeline(STARTED, called(10, "a", long_name), returned(20, "a", long_name, 10, "CUT"), *CUT_RUN[1:])
    assert max(map(len, text(many, width))) <= max(width, 63)


def test_segments_too_short_to_see_share_a_row_and_tools_never_do() -> None:
    shown = text(
        timeline(
            entered(10, STREAM, admission=0.4),
            called(20, "a", "calculate"),
            returned(20.2, "a", "calculate", 0.2),
            entered(50, TOOL, admission=0.4, llm_stream=40),
            finished(50.5, admission=0.4, llm_stream=40, tool_call=0.5),
        )
    )
    assert any(line.startswith("  calculate") for line in shown)
    assert any(line.split() == ["2", "under", "1", "ms", "0.9"] for line in shown)
    assert not any(line.startswith(("admission", "tool_call")) for line in shown)


def test_a_clipped_deadline_is_told() -> None:
    grant = orchestrator_pb2.Grant(granted_us=30_000_000, reserve_us=60_000, requested_us=90_000_000, clipped=True)
    shown = text(timeline(at(0, started=orchestrator_pb2.RunStarted(grant=grant)), finished(100, granted=30_000)))
    assert shown[-1].strip() == "spent 0.100 s, left 29.900 s; reserve 0.060 s; 90.0 s asked"


def test_a_run_that_ended_at_once_can_be_drawn() -> None:
    assert text(timeline(finished(0, granted=0)))


@in_virtual_time
async def test_the_rows_of_a_real_run_add_up_to_its_ledger() -> None:
    mesh = MemoryMesh(default_policy(), virtual_time.clock(), transit=0.001)
    client = DeadlineMesh(api_key=mesh.keys["acme"], channel=mesh.channel)
    gathered = Timeline()
    async for event in client.run("Run the long task for 2 seconds and calculate 2 * 21", deadline=20.0):
        gathered.add(event)
    assert gathered.finished is not None
    explained = {phase_name(one.phase): one.spent_us / 1e6 for one in gathered.finished.ledger.phases}
    assert len(explained) > 4
    rows = gathered.rows()
    for phase, spent in explained.items():
        assert sum(row.duration for row in rows if row.kind == phase) == pytest.approx(spent, abs=1e-5)
    assert {row.label for row in rows if row.kind == "tool"} == {"long_task", "calculate"}
    ends = [(row.start, row.start + row.duration) for row in rows if row.kind != "tool"]
    assert all(end <= start + 1e-4 for (_, end), (start, _) in pairwise(ends))
