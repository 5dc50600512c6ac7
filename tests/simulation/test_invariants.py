"""Each invariant can fail: a trace that is in order breaks none, and one false fact in it breaks the one that forbids it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
from tests.simulation import invariants
from tests.simulation.invariants import INVARIANTS, Invariant
from tests.simulation.scenario import (
    Attempt,
    Attempted,
    CallScript,
    Client,
    Leaving,
    Results,
    RunScript,
    Scenario,
    Shortened,
    Step,
    Store,
    StoreStep,
    Turn,
)
from tests.simulation.upstreams import Work
from tests.simulation.world import Trace, play
from tests.support.seen import Heard, Seen

from deadlinemesh.orchestrator.shortening import cut
from deadlinemesh.telemetry import CacheWritten, CallEnded, CallStarted, Event, OrphanReported, RunEnded
from deadlinemesh.v1 import common_pb2, orchestrator_pb2
from deadlinemesh.vocabulary import Phase

RETRIED, CUT, LEFT, KEPT, OTHER, LONG, GROUND, PROBE = range(8)
"""The runs: a tool is tried twice; a tool clings to its work beyond the deadline; the client hangs up; a tool is asked twice, and
answers once; it is asked the same by another tenant; a tool says too much; a tool is asked twice in a
worker process; and the first that comes when all others are gone."""


@cache
def trace() -> Trace:
    """Of a world in which everything goes as it should."""
    twice = CallScript(attempts=(Attempt(0.1, Attempted.IS_TRANSIENT, retry_after=1.0), Attempt(0.1)))
    clinging = CallScript("change", attempts=(Attempt(100.0, clings=1.0),))
    slow = CallScript("change", attempts=(Attempt(100.0),))
    talk = Turn((Step(0.1),))
    asks = CallScript(attempts=(Attempt(0.1),), asks=0)
    grind = Turn((Step(0.1, CallScript("grind", attempts=(Attempt(0.1),))),))
    long = CallScript("change", answers=300, shortened=Shortened(after=1.0))
    return play(
        Scenario(
            transit=0.0005,
            slots=3,
            store=Store(writes=(StoreStep(1.0),)),
            results=Results(shortener="brief"),
            runs=(
                RunScript("acme", client=Client(timeout=20.0), turns=(Turn((Step(0.1), Step(0.1, twice))), talk)),
                RunScript("bolt", client=Client(timeout=2.0), turns=(Turn((Step(0.1, clinging),)), talk)),
                RunScript(
                    "cora", client=Client(leaving=Leaving.HANGS_UP, leaves_after=1.0), turns=(Turn((Step(0.1, slow),)),)
                ),
                RunScript("acme", model="other", turns=(Turn((Step(0.1, asks),)), Turn((Step(5.0, asks),)), talk)),
                RunScript("bolt", model="other", turns=(Turn((Step(0.1, asks),)), talk)),
                RunScript("dora", model="other", turns=(Turn((Step(0.1, long),)), talk)),
                RunScript("acme", arrives_at=2.0, model="other", turns=(grind, grind, talk)),
            ),
        )
    )


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
def test_a_world_in_order_breaks_no_invariant(invariant: Invariant) -> None:
    assert list(invariant(trace())) == []


def _with_work(run: int, change: Callable[[Work], Work], *, kind: str = "tool") -> Trace:
    works = tuple(change(work) if (work.run, work.kind) == (run, kind) else work for work in trace().works)
    assert works != trace().works
    return replace(trace(), works=works)


def _with_event(run: int, sort: type[Any], change: Callable[[Any], Event | None], *, method: str = "") -> Trace:
    run_id = _seen(run).run_id
    events: list[Event] = []
    for event in trace().events:
        ours = isinstance(event, sort) and event.run_id == run_id and getattr(event, "method", "").endswith(method)
        changed = change(event) if ours else event
        events += [] if changed is None else [changed]
    assert tuple(events) != trace().events
    return replace(trace(), events=tuple(events))


def _with_seen(run: int, change: Callable[[Seen], Seen]) -> Trace:
    return replace(trace(), seen=tuple(change(seen) if seen.run == run else seen for seen in trace().seen))


def _with_end(run: int, change: Callable[[orchestrator_pb2.RunFinished], None]) -> Trace:
    """What the client was told of the run's end, changed."""

    def retold(seen: Seen) -> Seen:
        last = orchestrator_pb2.RunResponse()
        last.CopyFrom(seen.heard[-1].response)
        change(last.finished)
        return replace(seen, heard=(*seen.heard[:-1], Heard(seen.heard[-1].at, last)))

    return _with_seen(run, retold)


def _with_answer(run: int, **what: Any) -> Trace:
    """What the client was told of its tool calls, changed."""

    def retold(seen: Seen) -> Seen:
        heard = []
        for one in seen.heard:
            response = orchestrator_pb2.RunResponse()
            response.CopyFrom(one.response)
            if response.HasField("tool_call_finished"):
                for name, value in what.items():
                    setattr(response.tool_call_finished, name, value)
            heard.append(Heard(one.at, response))
        return replace(seen, heard=tuple(heard))

    return _with_seen(run, retold)


def _answer(run: int) -> str:
    """What the tool's first call of a run came to."""
    return next(
        one.response.tool_call_finished.content
        for one in _seen(run).heard
        if one.response.HasField("tool_call_finished")
    )


def _with_processes(**what: Any) -> Trace:
    return replace(trace(), processes=tuple(replace(process, **what) for process in trace().processes))


def _with_result(content: str) -> Trace:
    """What the model was given of the tool's long result, changed."""

    def retold(work: Work) -> Work:
        return replace(work, results=tuple((place, content) for place, _ in work.results))

    return _with_work(LONG, retold, kind="turn")


def _seen(run: int) -> Seen:
    return next(seen for seen in trace().seen if seen.run == run)


def _end(run: int) -> float:
    return next(
        event.due_at for event in trace().events if isinstance(event, RunEnded) and event.run_id == _seen(run).run_id
    )


def _lies() -> Iterator[tuple[Invariant, str, Callable[[], Trace]]]:
    """For each invariant, what it must say when it is shown which trace."""
    law: Invariant = invariants.no_work_is_done_after_a_deadline
    yield law, "began", lambda: _with_work(CUT, lambda work: replace(work, began=work.deadline + 0.01))
    yield law, "went on for", lambda: _with_work(RETRIED, lambda work: replace(work, ended=work.deadline + 0.01))
    yield law, "nobody reported it", lambda: _with_event(CUT, OrphanReported, lambda event: None)
    yield law, "was reported after", lambda: _with_event(CUT, OrphanReported, lambda event: replace(event, age=0.5))
    yield law, "that nobody made", lambda: _with_work(CUT, lambda work: replace(work, clings=0.0))
    yield (
        law,
        "Generate of",
        lambda: _with_event(
            RETRIED, CallEnded, lambda event: replace(event, ended_at=event.deadline_at + 0.01), method="/Generate"
        ),
    )
    yield (
        law,
        "its answer was due",
        lambda: _with_event(CUT, RunEnded, lambda event: replace(event, ended_at=event.due_at + 0.01)),
    )

    law = invariants.no_deadline_is_later_than_its_parents
    later = lambda event: replace(event, deadline_at=event.deadline_at + 10.0)  # noqa: E731  # said twice
    yield law, "more than its parent", lambda: _with_event(RETRIED, CallStarted, later, method="/Generate")
    yield (
        law,
        "than the call that it was done in",
        lambda: _with_work(RETRIED, lambda work: replace(work, deadline=work.deadline + 10.0)),
    )
    yield (
        law,
        "was due later",
        lambda: _with_event(CUT, RunEnded, lambda event: replace(event, due_at=event.due_at + 1.0)),
    )
    yield (
        law,
        "a write has",
        lambda: _with_work(KEPT, lambda work: replace(work, deadline=work.deadline + 1.0), kind="write"),
    )
    yield law, "was granted", lambda: _with_event(RETRIED, CallStarted, later, method="/Run")

    law = invariants.nothing_is_charged_to_the_wrong_tenant
    yield law, "was done for", lambda: _with_work(RETRIED, lambda work: replace(work, tenant="dora"))
    yield (
        law,
        "in the name of run",
        lambda: _with_work(KEPT, lambda work: replace(work, run_id=_seen(RETRIED).run_id), kind="write"),
    )
    yield (
        law,
        "CacheWritten of",
        lambda: _with_event(KEPT, CacheWritten, lambda event: replace(event, tenant_id="dora")),
    )
    yield law, "CallEnded of", lambda: _with_event(RETRIED, CallEnded, lambda event: replace(event, tenant_id="dora"))
    yield law, "RunEnded of", lambda: _with_event(RETRIED, RunEnded, lambda event: replace(event, tier="free"))
    yield law, "was told of run", lambda: _with_end(RETRIED, lambda end: setattr(end, "answer", "<r1t0s0> done"))
    yield law, "tokens", lambda: _with_end(RETRIED, lambda end: setattr(end.usage, "output_tokens", 7))
    yield law, "model calls", lambda: _with_end(RETRIED, lambda end: setattr(end.usage, "model_calls", 7))
    yield law, "tool calls", lambda: _with_end(RETRIED, lambda end: setattr(end.usage, "tool_calls", 0))
    yield (
        law,
        "the history of",
        lambda: replace(trace(), histories=tuple((number + 1, messages) for number, messages in trace().histories)),
    )

    law = invariants.every_client_is_answered_before_its_own_timer
    yield law, "still waits", lambda: _with_seen(CUT, lambda seen: replace(seen, ended_at=None))
    yield law, "after its own timer", lambda: _with_seen(CUT, lambda seen: replace(seen, ended_at=2.0))
    yield law, "without an end", lambda: _with_seen(CUT, lambda seen: replace(seen, heard=seen.heard[:-1]))
    yield law, "nobody told it why", lambda: _with_seen(CUT, lambda seen: replace(seen, code="DEADLINE_EXCEEDED"))
    yield law, "that had begun", lambda: _with_seen(CUT, lambda seen: replace(seen, code="CANCELLED", cause="SHED"))
    yield law, "no word of an answer", lambda: _with_end(CUT, lambda end: setattr(end, "answer", ""))

    law = invariants.every_run_ends_for_the_reason_it_had
    yield (
        law,
        "a defect of its own",
        lambda: _with_event(RETRIED, CallEnded, lambda event: replace(event, cause="INTERNAL")),
    )
    for outcome, says in (("FAILED", "no model"), ("CANCELLED", "nobody had left"), ("DEADLINE_SPENT", "lack of time")):
        yield law, says, partial(_with_event, RETRIED, RunEnded, partial(replace, outcome=outcome))
    yield (
        law,
        "with its own time",
        lambda: _with_event(CUT, RunEnded, lambda event: replace(event, cause="DEADLINE_SPENT_UPSTREAM")),
    )
    yield law, "completed because", lambda: _with_end(RETRIED, lambda end: setattr(end, "cause", 1))

    law = invariants.the_ledger_sums_to_the_elapsed_time
    yield law, "in all", lambda: _with_end(RETRIED, lambda end: setattr(end.ledger, "elapsed_us", 1))
    yield law, "cannot explain", lambda: _with_end(RETRIED, _move_to_unattributed)
    yield law, "that it was granted", lambda: _with_end(RETRIED, lambda end: setattr(end.ledger, "granted_us", 1))
    yield law, "its client waited", lambda: _with_seen(RETRIED, lambda seen: replace(seen, sent_at=seen.sent_at - 1.0))

    law = invariants.retries_keep_within_the_tier_and_the_time
    yield (
        law,
        "were allowed",
        lambda: replace(
            trace(), works=(*trace().works, *(replace(work, attempt=2) for work in trace().works if work.run == CUT))
        ),
    )
    yield law, "too early", lambda: _with_work(RETRIED, lambda work: replace(work, retry_after=5.0))
    yield (
        law,
        "s left",
        lambda: _with_work(
            RETRIED, lambda work: replace(work, began=_end(RETRIED) - 0.04) if work.attempt == 2 else work
        ),
    )

    law = invariants.the_work_of_a_client_that_left_stops
    yield (
        law,
        "after its client had left",
        lambda: _with_work(LEFT, lambda work: replace(work, ended=work.ended + 0.01)),
    )

    law = invariants.slots_and_registries_are_empty_at_the_end
    yield law, "something", lambda: replace(trace(), leftovers=("something",))
    yield law, "nobody handled", lambda: replace(trace(), unforeseen=("a failure",))
    yield law, "never ended", lambda: _with_work(LEFT, lambda work: replace(work, ended=float("inf")))
    yield law, "turns at once", lambda: _with_work(LEFT, lambda work: replace(work, ended=1e9), kind="turn")
    yield (
        law,
        "calls at once",
        lambda: replace(
            trace(), works=tuple(replace(work, name="fetch", began=0.0, ended=9.0) for work in trace().works)
        ),
    )
    yield law, "calls began", lambda: _with_event(LEFT, CallEnded, lambda event: None, method="/Run")
    yield (
        law,
        "ended twice",
        lambda: replace(
            trace(), events=(*trace().events, *(event for event in trace().events if isinstance(event, RunEnded)))
        ),
    )
    yield (
        law,
        "nobody else was there",
        lambda: _with_seen(PROBE, lambda seen: replace(seen, sent_at=seen.sent_at - 1.0)),
    )

    law = invariants.a_worker_process_is_one_tenants_and_makes_room
    ground = partial(_with_work, GROUND)
    yield law, "in a process of bolt", lambda: _with_processes(tenant="bolt")
    yield law, "that was at work for", lambda: ground(lambda work: replace(work, ended=work.ended + 1.0))
    yield law, "had not ended well", lambda: ground(lambda work: replace(work, left=True))
    yield law, "had been told to end", lambda: _with_processes(told_at=0.0)
    yield law, "had 4 calls", lambda: replace(trace(), works=trace().works * 2)
    yield law, "worker processes at once", lambda: replace(trace(), processes=trace().processes * 3)

    law = invariants.what_is_kept_is_its_tenants_alone_and_for_a_while
    read, write = partial(_with_work, KEPT, kind="read"), partial(_with_work, KEPT, kind="write")
    yield law, "what is bolt's", lambda: read(lambda work: replace(work, owner="bolt"))
    yield law, "is to be kept", lambda: replace(trace(), scenario=replace(trace().scenario, store=None))
    yield law, "was to be kept for", lambda: write(lambda work: replace(work, keep_for=99.0))
    yield law, "keeps a failure", lambda: write(lambda work: replace(work, content="it is wrong"))
    yield law, "was not kept for it", lambda: write(lambda work: replace(work, ended=work.ended + 5.0))
    yield law, "was not kept for it", lambda: write(lambda work: replace(work, ended=work.ended - 20.0))
    yield law, "was not kept for it", lambda: write(lambda work: replace(work, owner="bolt"))
    yield law, "nothing that a tool said", lambda: _with_answer(KEPT, content="done")
    yield law, "for bolt", lambda: _with_answer(KEPT, content=_answer(OTHER))
    yield law, "nobody had kept", lambda: read(lambda work: replace(work, content=None))

    law = invariants.a_store_is_nobodys_wait
    yield law, "s to look", lambda: read(lambda work: replace(work, deadline=work.deadline + 0.01))
    yield law, "before its time", lambda: write(lambda work: replace(work, cut=True))
    yield law, "was waited for", lambda: write(lambda work: replace(work, began=work.began - 0.01))
    yield law, "had not been at work", lambda: _with_answer(KEPT, status=common_pb2.TOOL_STATUS_FAILED)

    law = invariants.a_long_result_is_shortened_in_time_or_cut
    shortening = partial(_with_work, LONG, kind="shortening")
    yield law, "was given 7.", lambda: shortening(lambda work: replace(work, deadline=work.deadline + 0.1))
    yield law, "was shortened 2 times", lambda: replace(trace(), works=trace().works * 2)
    yield law, "with 315 characters", lambda: _with_result(_answer(LONG))
    yield law, "said in time", lambda: shortening(lambda work: replace(work, content="y"))
    yield law, "neither shortened nor cut", lambda: _with_result("something")
    yield law, "had ended in time", lambda: _with_result(cut(_answer(LONG), 200))
    for charged, says in ((99.0, "it may have been"), (0.9, "it was at least")):
        yield law, says, partial(_with_event, LONG, RunEnded, partial(replace, phases={Phase.PROCESSING: charged}))

    law = invariants.history_is_always_valid
    yield (
        law,
        "is not valid",
        lambda: replace(trace(), histories=tuple((number, messages[:-1]) for number, messages in trace().histories)),
    )
    yield law, "was given a history", lambda: _with_work(LEFT, lambda work: replace(work, invalid=("it lies",)))


def _move_to_unattributed(end: orchestrator_pb2.RunFinished) -> None:
    end.ledger.unattributed_us += end.ledger.phases[0].spent_us
    end.ledger.phases[0].spent_us = 0


LIES = tuple(_lies())


@pytest.mark.parametrize(("invariant", "says", "lie"), LIES, ids=lambda part: getattr(part, "__name__", part))
def test_a_false_fact_breaks_the_invariant_that_forbids_it(
    invariant: Invariant, says: str, lie: Callable[[], Trace]
) -> None:
    assert any(says in found for found in invariant(lie()))


def test_there_is_a_false_fact_for_every_invariant() -> None:
    assert {invariant for invariant, _, _ in LIES} == set(INVARIANTS)
