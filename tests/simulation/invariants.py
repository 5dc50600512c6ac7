"""What must be true of every trace. Each function gives what speaks against it, in sentences; nothing, if all is well.

Three kinds of witnesses are heard: the models and tools, who note when they were at work, for whom and until when; the hops,
by what they report; and the clients, by what they were told and when.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import inf
from typing import TypeVar

from tests.simulation.scenario import (
    HTTP_TOOLS,
    IDEMPOTENT,
    LOOK_KEPT_FOR,
    MODELS,
    SHORTENER,
    TENANTS,
    CallScript,
    TurnEnd,
)
from tests.simulation.upstreams import Work, answered, marked
from tests.simulation.world import Trace
from tests.support.seen import MICROSECONDS, Seen, ledger_violations

from deadlinemesh.deadline import RetryPolicy
from deadlinemesh.deadline.scope import CANCEL_AGAIN_AFTER, REPORT_ORPHAN_AFTER
from deadlinemesh.orchestrator.shortening import SHARE, cut
from deadlinemesh.telemetry import (
    CacheUsed,
    CacheWritten,
    CallEnded,
    CallStarted,
    Event,
    FellBack,
    OrphanReported,
    Retried,
    RunEnded,
)
from deadlinemesh.tool_runner.cache import READ_SHARE
from deadlinemesh.v1 import common_pb2, orchestrator_pb2
from deadlinemesh.vocabulary import Phase, Role, history_violations
from deadlinemesh.vocabulary.hops import LLM_PROXY as LLM_PROXY
from deadlinemesh.vocabulary.hops import ORCHESTRATOR
from deadlinemesh.vocabulary.hops import TOOL_RUNNER as TOOL_RUNNER

__all__ = ["INVARIANTS", "Invariant"]

E = TypeVar("E", bound=Event)
Invariant = Callable[[Trace], Iterator[str]]

EXACT = 1e-6
"""Seconds. Nothing takes time on a virtual clock: what is late by more than rounding is late."""

EXPIRES_WITH = 0.05
"""Seconds before a run's end within which a spent deadline of one of its calls stands for the run's own."""

ORPHANED = REPORT_ORPHAN_AFTER + CANCEL_AGAIN_AFTER
"""Seconds after its end at which work that goes on must have been reported."""


def no_work_is_done_after_a_deadline(trace: Trace) -> Iterator[str]:
    """Nothing begins once its time is spent, and what is at work then stops at that instant.

    Only what clings to its work goes on, as the script says and no longer, and it has been reported as an orphan. A write of what
    is kept has a time of its own, and so has a read; but it is the end of its call that makes an orphan of a read.
    """
    due = {event.run_id: event.due_at for event in _of(trace, RunEnded)}
    orphans = {(event.hop, event.tenant_id, event.run_id) for event in _of(trace, OrphanReported)}
    for work in trace.works:
        end = over = min(
            work.deadline, inf if work.kind == "write" else due.get(work.run_id, inf) + trace.scenario.transit
        )
        if work.kind == "read":
            over = due.get(work.run_id, inf) + trace.scenario.transit
        if work.began > end + EXACT:
            yield f"{_named(work)} began {work.began - end:.6f} s after its deadline"
        if work.ended > end + work.clings + EXACT:
            yield f"{_named(work)} went on for {work.ended - end:.6f} s after its deadline"
        if work.ended > over + ORPHANED + EXACT and (_hop(work), work.tenant, work.run_id) not in orphans:
            yield f"{_named(work)} went on for {work.ended - end:.6f} s after its deadline, and nobody reported it"
    yield from _false_orphans(trace)
    yield from _late_ends(trace)


def _false_orphans(trace: Trace) -> Iterator[str]:
    for orphan in _of(trace, OrphanReported):
        if orphan.age > ORPHANED + EXACT:
            yield f"an orphan of {orphan.run_id} was reported after {orphan.age:.6f} s"
        if not any(work.clings and (_hop(work), work.run_id) == (orphan.hop, orphan.run_id) for work in trace.works):
            yield f"{orphan.hop} reported an orphan of {orphan.run_id} that nobody made: {orphan.task}"


def _late_ends(trace: Trace) -> Iterator[str]:
    clings: dict[tuple[str, str], float] = defaultdict(float)
    for work in trace.works:
        if work.kind == "write":
            continue  # no call's
        # What clings in a task of its own is left to itself once it is reported; what clings in the handler holds its call.
        held = work.clings if work.kind in _MODELS_WORK else min(work.clings, ORPHANED)
        clings[_hop(work), work.run_id] = max(held, clings[_hop(work), work.run_id])
    for call in _of(trace, CallEnded):
        late = call.ended_at - call.deadline_at
        # What is sent first is never cut in the middle: it may have one way to go yet.
        if late > max(clings[call.hop, call.run_id], trace.scenario.transit) + EXACT:
            yield f"{call.hop}{call.method} of {call.run_id} ended {late:.6f} s after its deadline"
    for run in _of(trace, RunEnded):
        if run.ended_at > run.due_at + EXACT:
            yield f"{run.run_id} ended {run.ended_at - run.due_at:.6f} s after its answer was due"


def no_deadline_is_later_than_its_parents(trace: Trace) -> Iterator[str]:
    """From the client to the tool, each deadline is at most the one above it and the way that it had to travel."""
    way = trace.scenario.transit + EXACT
    edge = {event.run_id: event for event in _of(trace, CallStarted) if event.hop == ORCHESTRATOR}
    due = {event.run_id: event.due_at for event in _of(trace, RunEnded)}
    hops: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in _of(trace, CallStarted):
        hops[event.hop, event.run_id].append(event.deadline_at)
        if event.hop == ORCHESTRATOR or event.run_id not in edge:
            continue
        preparing = event.method.endswith("/ListTools")  # by the call that began the run; all else is the run's own
        parent = edge[event.run_id].deadline_at if preparing else due.get(event.run_id, inf)
        if event.deadline_at > parent + way:
            yield f"{event.hop}{event.method} of {event.run_id} got {event.deadline_at - parent:.6f} s more than its parent"
    for run_id, due_at in due.items():
        if run_id not in edge or due_at > edge[run_id].deadline_at + EXACT:
            yield f"{run_id} was due later than the deadline of the call that began it"
    for work in trace.works:
        if work.kind == "write":
            budget = trace.policy.tools.cache_write_budget
            if work.deadline > work.began + budget + EXACT:
                yield f"{_named(work)} was given {work.deadline - work.began:.6f} s; a write has {budget}"
        elif work.deadline > max(hops[_hop(work), work.run_id], default=-inf) + EXACT:
            yield f"{_named(work)} had a later deadline than the call that it was done in"
    for seen in trace.seen:
        if seen.run_id not in edge or seen.joins:
            continue
        call = edge[seen.run_id]
        budget = trace.policy.tiers[TENANTS[trace.scripts[seen.run].tenant]].run_budget
        granted = call.deadline_at - call.started_at
        asked = inf if seen.timer_at is None else (seen.timer_at - seen.sent_at) * trace.scenario.rounding
        if granted > min(budget, asked) + EXACT:
            yield f"{seen.run_id} was granted {granted:.6f} s; its tier has {budget:.6f}, its client asked for {asked:.6f}"


def nothing_is_charged_to_the_wrong_tenant(trace: Trace) -> Iterator[str]:
    """Whatever is done, reported or told for a run bears its tenant's name, and its usage is what was done for it."""
    owners: dict[str, tuple[str, str]] = {}
    runs = {seen.run_id: seen.run for seen in trace.seen if seen.run_id}
    for seen in trace.seen:
        tenant = trace.scripts[seen.run].tenant
        if seen.run_id:
            owners[seen.run_id] = (tenant, TENANTS[tenant])
        for heard in seen.heard:
            grant = heard.response.started.grant
            if heard.response.HasField("started") and (grant.tenant_id, grant.tier) != (tenant, TENANTS[tenant]):
                yield f"run {seen.run} of {tenant} was granted to {grant.tenant_id} of tier {grant.tier}"
            others = marked(str(heard.response)) - {seen.run}
            if others:
                yield f"the client of run {seen.run} was told of run {others}"
    for work in trace.works:
        tenant = trace.scripts[work.run].tenant
        if (work.tenant, work.tier) != (tenant, TENANTS[tenant]) or owners.get(work.run_id, (tenant,))[0] != tenant:
            yield f"{_named(work)} was done for {work.tenant} of tier {work.tier}; it was {tenant}'s"
        if runs.get(work.run_id, work.run) != work.run:
            yield f"{_named(work)} was done in the name of run {runs[work.run_id]}"
    reported: list[CallEnded | RunEnded | OrphanReported | CacheUsed | CacheWritten] = []
    for kind in (CallEnded, RunEnded, OrphanReported, CacheUsed, CacheWritten):
        reported += _of(trace, kind)
    for event in reported:
        tenant, tier = owners.get(event.run_id, (event.tenant_id, ""))
        if event.tenant_id != tenant or (tier and getattr(event, "tier", tier) != tier):
            yield f"{type(event).__name__} of {event.run_id} names {event.tenant_id}; it was {tenant}'s"
    for number, messages in trace.histories:
        others = set().union(*(marked(message.content) for message in messages)) - {number}
        if others:
            yield f"the history of run {number} tells of run {others}"
    yield from _wrong_usage(trace)


def _wrong_usage(trace: Trace) -> Iterator[str]:
    for seen in trace.seen:
        if seen.finished is None:
            continue
        works = [work for work in trace.works if work.kind in _MODELS_WORK and work.run_id == seen.run_id]
        again = sum(one.run_id == seen.run_id and one.upstream.startswith("model") for one in _of(trace, Retried))
        again += sum(one.run_id == seen.run_id for one in _of(trace, FellBack))
        written, charged = [work.tokens for work in works if work.tokens], seen.finished.usage.output_tokens
        # What was written in the last turn, in one that was given up, or for what was shortened, may have been cut on its way.
        late = [one for one in works if one.kind == "shortening" and one.tokens and not _in_time(trace, one)]
        parts = (part for count in range(again + len(late) + 2) for part in combinations(written, count))
        if all(sum(written) - sum(part) != charged for part in parts):
            yield f"run {seen.run} is charged {charged} tokens; its models wrote {written}"
        # Those that a slot was refused to, or that still waited for one, were never seen at work.
        asked = seen.finished.iterations + again + sum(_is_too_long(trace, one) for one in _results(trace, seen.run))
        if not len(works) <= seen.finished.usage.model_calls <= asked:
            yield f"run {seen.run} is charged {seen.finished.usage.model_calls} model calls; it made {len(works)}"
        called = len({work.place for work in trace.works if work.kind == "tool" and work.run_id == seen.run_id})
        if called > seen.finished.usage.tool_calls:
            yield f"run {seen.run} is charged {seen.finished.usage.tool_calls} tool calls; it made {called}"


def every_client_is_answered_before_its_own_timer(trace: Trace) -> Iterator[str]:
    """Who has not left is told how the run ended, or why there is none, by the mesh and not by its own clock."""
    for seen in trace.seen:
        who = f"the client of run {seen.run}"
        if seen.left_at is not None:
            continue
        if seen.ended_at is None:
            yield f"{who} still waits"
        elif seen.timer_at is not None and seen.ended_at >= seen.timer_at:
            yield f"{who} was answered {seen.ended_at - seen.timer_at:.6f} s after its own timer"
        elif seen.code == "OK" and (not seen.heard or not seen.heard[-1].response.HasField("finished")):
            yield f"{who} was left without an end"
        elif seen.code != "OK" and not seen.cause:
            yield f"{who} got {seen.code}, and nobody told it why"
        elif seen.code != "OK" and seen.heard and not _stopped(trace, ORCHESTRATOR):
            yield f"{who} got {seen.code} from a run that had begun"
        elif seen.finished is not None and not seen.finished.answer:
            yield f"{who} got no word of an answer"


def every_run_ends_for_the_reason_it_had(trace: Trace) -> Iterator[str]:
    """Causes stay distinct: time, the client, a model that failed, a refusal. None of them is told for another."""
    due = {event.run_id: event.due_at for event in _of(trace, RunEnded)}
    outcomes = orchestrator_pb2.Outcome
    for call in _of(trace, CallEnded):
        broke = any(
            work.run_id == call.run_id and TurnEnd.BREAKS in (_ends(trace, work), _shortens(trace, work))
            for work in trace.works
        )
        if call.cause == "INTERNAL" and not (call.hop == LLM_PROXY and broke):
            yield f"{call.hop}{call.method} of {call.run_id} failed for a defect of its own"
    for event in _of(trace, RunEnded):
        failed = any(
            work.run_id == event.run_id and _ends(trace, work) not in (None, TurnEnd.STOPS, TurnEnd.AT_ITS_LIMIT)
            for work in trace.works
        )
        refused = event.cause in ("SHED", "DOOMED") or (
            event.cause == "DRAINING" and trace.scenario.shutdown is not None
        )
        left = any(
            seen.left_at is not None and seen.left_at <= event.ended_at
            for seen in trace.seen
            if seen.run_id == event.run_id or not seen.run_id
        ) or any(run_id == event.run_id and at <= event.ended_at for run_id, at in trace.cancelled)
        early = due[event.run_id] - event.ended_at
        match event.outcome:
            case "FAILED" if not (failed or refused):
                yield f"{event.run_id} failed by {event.cause}, though no model of it did"
            case "CANCELLED" if not left:
                yield f"{event.run_id} was cancelled, and nobody had left it"
            case "DEADLINE_SPENT" if event.cause == "DOOMED":
                continue  # what is left is too little for anything
            case "DEADLINE_SPENT" if early > EXPIRES_WITH + EXACT:
                yield f"{event.run_id} ended for lack of time with {early:.6f} s left"
            case "DEADLINE_SPENT" if event.cause != "DEADLINE_SPENT":
                yield f"{event.run_id} ended with its own time, and {event.cause} is told"
    for seen in trace.seen:
        if seen.finished is not None and seen.finished.outcome == outcomes.OUTCOME_COMPLETED and seen.finished.cause:
            yield f"run {seen.run} completed because of {seen.finished.cause}"


def the_ledger_sums_to_the_elapsed_time(trace: Trace) -> Iterator[str]:
    """The phases divide a run's time without overlap, what they do not explain is said, and the client's clock agrees."""
    for seen in trace.seen:
        yield from ledger_violations(seen)
        if seen.finished is None:
            continue
        ledger = seen.finished.ledger
        waited = (seen.heard[-1].at - seen.sent_at) * 1_000_000
        # There and back, and each response takes its way after the one before it.
        ways = trace.scenario.transit * (len(seen.heard) + 2) * 1_000_000
        if not seen.joins and not -MICROSECONDS <= waited - ledger.elapsed_us <= ways + MICROSECONDS:
            yield f"run {seen.run} says {ledger.elapsed_us} us; its client waited for {waited:.0f}"


def retries_keep_within_the_tier_and_the_time(trace: Trace) -> Iterator[str]:
    """As often as the tier allows and only what is idempotent; one after the other, not before the upstream wants it, and
    with time enough.
    """
    due = {event.run_id: event.due_at for event in _of(trace, RunEnded)}
    way, least, keeps = trace.scenario.transit, RetryPolicy(0).viable_attempt, trace.scenario.store is not None
    calls: dict[tuple[int, str, str], list[Work]] = defaultdict(list)
    for work in trace.works:
        if work.kind in ("turn", "tool"):
            calls[work.run, work.place, work.name].append(work)
    for attempts in calls.values():
        first = attempts[0]
        allowed = trace.policy.tiers[TENANTS[trace.scripts[first.run].tenant]].tool_retries
        retries = allowed if first.kind == "turn" or IDEMPOTENT[first.name] else 0
        if len(attempts) > 1 + retries:
            yield f"{_named(first)} was tried {len(attempts)} times; {1 + retries} were allowed"
        for before, after in pairwise(attempts):
            # Who called gives up one way before the tool hears of it.
            free_at = min(before.ended - before.clings, before.deadline) - way + (before.retry_after or 0.0)
            if after.began < free_at - EXACT:
                yield f"{_named(after)} came {free_at - after.began:.6f} s too early after the one before"
            left = due.get(after.run_id, inf) - (after.began - way)
            # Looking for a kept result comes before the tool.
            if first.name not in _QUEUED and left < least * (1.0 - READ_SHARE * keeps) - EXACT:
                yield f"{_named(after)} began with {left:.6f} s left"


_QUEUED = HTTP_TOOLS | {"grind", *MODELS}
"""What may have waited for a connection, a process or a slot when it begins: how much time they had when called is not seen."""


def the_work_of_a_client_that_left_stops(trace: Trace) -> Iterator[str]:
    """When nobody waits for a run any more, whatever is done for it stops as soon as the word has reached it."""
    watchers: dict[str, list[Seen]] = defaultdict(list)
    for seen in trace.seen:
        watchers[seen.run_id].append(seen)
    cancelled = dict(reversed(trace.cancelled))
    # A cancel crosses two hops, and on each it may have to wait until a first response has crossed one.
    word = 4 * trace.scenario.transit
    for work in trace.works:
        if work.kind == "write":
            continue
        gone = [inf if seen.left_at is None else seen.left_at for seen in watchers.get(work.run_id, ())]
        stopped = min(max(gone, default=inf), cancelled.get(work.run_id, inf)) + word
        if work.ended > stopped + work.clings + EXACT:
            yield f"{_named(work)} went on for {work.ended - stopped:.6f} s after its client had left"


def slots_and_registries_are_empty_at_the_end(trace: Trace) -> Iterator[str]:
    """Never more at once than there is room for; and in the end everything is over, forgotten, and free for the next."""
    yield from trace.leftovers
    yield from (f"nobody handled: {failure}" for failure in trace.unforeseen)
    yield from (f"{_named(work)} never ended" for work in trace.works if work.ended == inf)
    for model in (*MODELS, SHORTENER):
        held = _most_at_once([work for work in trace.works if work.kind in _MODELS_WORK and work.name == model])
        if held > trace.scenario.slots:
            yield f"{model} had {held} turns at once; it has {trace.scenario.slots} slots"
    held = _most_at_once([work for work in trace.works if work.kind == "tool" and work.name in HTTP_TOOLS])
    if held > trace.scenario.connections:
        yield f"the HTTP host had {held} calls at once; {trace.scenario.connections} are allowed"
    started = sorted((event.hop, event.method, event.run_id) for event in _of(trace, CallStarted))
    ended = sorted((event.hop, event.method, event.run_id) for event in _of(trace, CallEnded))
    if started != ended:
        yield f"{len(started)} calls began and {len(ended)} ended"
    runs = [event.run_id for event in _of(trace, RunEnded)]
    if len(runs) != len(set(runs)):
        yield "a run ended twice"
    for work in trace.works:
        asked_at = next((seen.sent_at for seen in trace.seen if seen.probe and seen.run == work.run), inf)
        soon = asked_at + 20 * trace.scenario.transit
        if work.kind == "tool" and trace.scenario.store is not None:
            soon += trace.policy.tools.cache_read_budget
        if work.kind != "write" and work.began > soon + EXACT and work.place.rpartition("t")[2][0] == "0":
            yield f"{_named(work)} had to wait for {work.began - asked_at:.6f} s, though nobody else was there"


def a_worker_process_is_one_tenants_and_makes_room(trace: Trace) -> Iterator[str]:
    """A process serves one tenant, one call at a time and not too many; none after one that did not end well. There are never more
    than may be, idle ones too: what is told to end has given up its place.
    """
    processes = {process.number: process for process in trace.processes}
    calls: dict[int, list[Work]] = defaultdict(list)
    for work in trace.works:
        if work.worker:
            calls[work.worker].append(work)
    for number, works in calls.items():
        process = processes[number]
        yield from (
            f"{_named(work)} was done for {work.tenant} in a process of {process.tenant}"
            for work in works
            if work.tenant != process.tenant
        )
        for before, after in pairwise(works):
            if after.began < before.ended - EXACT:
                yield f"{_named(after)} was done in a process that was at work for {_named(before)}"
            if before.left or before.cut:
                yield f"{_named(after)} was done in a process that had not ended well with {_named(before)}"
        if works[-1].began > process.told_at + EXACT:
            yield f"{_named(works[-1])} was done in a process that had been told to end"
        if len(works) > trace.policy.tools.calls_per_worker:
            yield f"a process had {len(works)} calls"
    most = _most_spans([(one.born_at, one.told_at) for one in trace.processes])
    if most > trace.scenario.workers:
        yield f"there were {most} worker processes at once; {trace.scenario.workers} are allowed"


def what_is_kept_is_its_tenants_alone_and_for_a_while(trace: Trace) -> Iterator[str]:
    """A call is answered by its own tool's work, or by what the same tenant's same call of an idempotent tool had written not
    longer ago than results of that tool may be kept.
    """
    writes: dict[tuple[str, str, str], list[Work]] = defaultdict(list)
    reads: dict[tuple[int, str], list[Work]] = defaultdict(list)
    for work in trace.works:
        if work.kind in ("read", "write"):
            if work.owner != work.tenant:
                yield f"{_named(work)} was done for {work.tenant} and asked for what is {work.owner}'s"
            if not _keeps(trace, work.name):
                yield f"{_named(work)} was done, though nothing of {work.name} is to be kept"
        if work.kind == "write" and work.content is not None:
            writes[work.owner, work.name, work.question].append(work)
            if work.keep_for != _keeps(trace, work.name):
                yield f"{_named(work)} was to be kept for {work.keep_for} s, not {_keeps(trace, work.name)}"
            if not work.content.partition("> ")[2].startswith("done"):
                yield f"{_named(work)} keeps a failure"
        if work.kind == "read" and work.content is not None:
            reads[work.run, work.place].append(work)
    for found in (work for works in reads.values() for work in works):
        kept = writes[found.tenant, found.name, found.question]
        if not any(
            one.content == found.content and one.ended <= found.ended < one.ended + one.keep_for for one in kept
        ):
            yield f"{_named(found)} found what was not kept for it"
    for run, place, status, content in ((*key, told.status, told.content) for key, told in _told(trace).items()):
        if status != common_pb2.TOOL_STATUS_OK:
            continue
        call = _call(trace, run, place)
        source = answered(content)
        if source is None:
            yield f"the call of run {run} ({place}) was answered with nothing that a tool said"
            continue
        work = trace.works[source[1]]
        if (work.name, source[0], work.tenant) != (call.tool, work.question, trace.scripts[run].tenant):
            yield f"the call of run {run} ({place}) was answered with {_named(work)} for {work.tenant}"
        elif (work.run, work.place) != (run, place) and all(one.content != content for one in reads[run, place]):
            yield f"the call of run {run} ({place}) was answered with {_named(work)}, which nobody had kept for it"


def a_store_is_nobodys_wait(trace: Trace) -> Iterator[str]:
    """Looking takes a small part of a call's time at most. A write is waited for by nobody, ends with nobody's run, and has a time
    of its own. Where the store fails, the tool answers all the same.
    """
    way, tools = trace.scenario.transit, trace.policy.tools
    due = {event.run_id: event.due_at for event in _of(trace, RunEnded)}
    told = _told(trace)
    works: dict[tuple[int, str], list[Work]] = defaultdict(list)
    for work in trace.works:
        works[work.run, work.place].append(work)
        if work.kind == "read":
            most = min(tools.cache_read_budget, READ_SHARE * (due.get(work.run_id, inf) + way - work.began))
            if work.deadline - work.began > most + EXACT:
                yield f"{_named(work)} was given {work.deadline - work.began:.6f} s to look, not {most:.6f}"
        if work.kind == "write":
            left = work.deadline - (work.ended - work.clings)
            if work.cut and left > EXACT and not _stopped(trace, TOOL_RUNNER):
                yield f"{_named(work)} was cut {left:.6f} s before its time"
            answer = told.get((work.run, work.place))
            late = 0.0 if answer is None else answer.at - work.began
            if late > 3 * way + MICROSECONDS / 1_000_000:
                yield f"{_named(work)} was waited for: its result was told {late:.6f} s after it was known"
    for (run, place), answer in told.items():
        call = _call(trace, run, place)
        if answer.status != common_pb2.TOOL_STATUS_FAILED or call.tool != "look" or trace.scenario.shutdown is not None:
            continue
        if not any(work.kind == "tool" for work in works[run, place]):
            yield f"the call of run {run} ({place}) failed, and its tool had not been at work"


def a_long_result_is_shortened_in_time_or_cut(trace: Trace) -> Iterator[str]:
    """No model is given more of a result than there is room for. It is what another model made of it within a part of the run's
    time, or else the beginning with a mark; and the run waits no longer for that, and says so.
    """
    if trace.scenario.results is None:
        return
    longest, told = trace.scenario.results.longest, _told(trace)
    due = {event.run_id: event.due_at for event in _of(trace, RunEnded)}
    shortenings: dict[tuple[int, str], list[Work]] = defaultdict(list)
    for work in trace.works:
        if work.kind == "shortening":
            shortenings[work.run, work.place].append(work)
            most = SHARE * (due.get(work.run_id, inf) + trace.scenario.transit - work.began) + trace.scenario.transit
            if work.deadline - work.began > most + EXACT:
                yield f"{_named(work)} was given {work.deadline - work.began:.6f} s, not {most:.6f}"
    for (run, place), works in shortenings.items():
        if len(works) > 1:
            yield f"the result of the call of run {run} ({place}) was shortened {len(works)} times"
    for run, place, content, is_last_word in _given(trace):
        whole, who = told.get((run, place)), f"the result of the call of run {run} ({place})"
        if len(content) > longest + _MARKS:
            yield f"{who} was given with {len(content)} characters; {longest} are allowed"
        if whole is None or not _is_too_long(trace, whole):
            continue
        said = next((one for one in shortenings[run, place] if one.content and len(one.content) <= longest), None)
        if said is not None and content == f"{_SHORTENED % len(whole.content)}{said.content}":
            continue
        if content.startswith("[shortened"):
            yield f"{who} was given as what no model said in time: {content[:300]!r}"
        elif is_last_word and content != cut(whole.content, longest):
            yield f"{who} was neither shortened nor cut: {content[:300]!r}"
        elif is_last_word and said is not None and _in_time(trace, said):
            yield f"{who} was cut, though {_named(said)} had ended in time"
    yield from _wrong_processing(trace)


_SHORTENED = "[shortened by another model: the answer has %s characters]\n"
_MARKS = len(_SHORTENED) + 5
"""Characters, at most, that say that a result was shortened, or cut."""


def _given(trace: Trace) -> Iterator[tuple[int, str, str, bool]]:
    """The run, the place and the text of each result as a model or a client was given it; and whether that is the last word."""
    for work in trace.works:
        yield from ((work.run, place, content, True) for place, content in work.results)
    for run, messages in trace.histories:
        yield from ((run, one.tool_call_id, one.content, False) for one in messages if one.role is Role.TOOL)


def _wrong_processing(trace: Trace) -> Iterator[str]:
    """What shortening takes is charged to `processing`, where nothing else goes on; and nothing else is."""
    way, told = trace.scenario.transit, _told(trace)
    ended = {event.run_id: event for event in _of(trace, RunEnded)}
    for seen in trace.seen:
        if seen.finished is None or seen.run_id not in ended:
            continue
        run = ended[seen.run_id]
        charged = run.phases.get(Phase.PROCESSING, 0.0)
        most = sum(
            SHARE * max(0.0, run.due_at - one.at) for one in _results(trace, seen.run) if _is_too_long(trace, one)
        )
        if charged > most + EXACT:
            yield f"run {seen.run} is charged {charged:.6f} s of processing; it may have been {most:.6f}"
        works = [work for work in trace.works if work.run_id == seen.run_id]
        spans = [
            (
                one.began,
                min(one.ended - one.clings, one.deadline, run.ended_at) - way,
            )  # whose end it may hear of so much later
            for one in works
            if one.kind == "shortening"
        ]
        # A turn is over for the orchestrator when its call is.
        others = [(one.began, one.ended + 3 * way) for one in works if one.kind == "turn"]
        others += [(one.began_at, one.at) for (number, _), one in told.items() if number == seen.run]
        least = _outside([span for span in spans if span[0] < span[1]], others)
        if charged < least - MICROSECONDS / 1_000_000:
            yield f"run {seen.run} is charged {charged:.6f} s of processing; it was at least {least:.6f}"


def history_is_always_valid(trace: Trace) -> Iterator[str]:
    """Whenever somebody looks, and whatever a model is given: every tool call has exactly one result."""
    for number, messages in trace.histories:
        wrong = history_violations(messages, "messages")
        if wrong:
            yield f"the history of run {number} is not valid: {wrong[0].field}: {wrong[0].description}"
    for work in trace.works:
        yield from (f"{_named(work)} was given a history that is not valid: {wrong}" for wrong in work.invalid)


INVARIANTS: tuple[Invariant, ...] = (
    no_work_is_done_after_a_deadline,
    no_deadline_is_later_than_its_parents,
    nothing_is_charged_to_the_wrong_tenant,
    every_client_is_answered_before_its_own_timer,
    every_run_ends_for_the_reason_it_had,
    the_ledger_sums_to_the_elapsed_time,
    retries_keep_within_the_tier_and_the_time,
    the_work_of_a_client_that_left_stops,
    slots_and_registries_are_empty_at_the_end,
    a_worker_process_is_one_tenants_and_makes_room,
    what_is_kept_is_its_tenants_alone_and_for_a_while,
    a_store_is_nobodys_wait,
    a_long_result_is_shortened_in_time_or_cut,
    history_is_always_valid,
)


def _of(trace: Trace, kind: type[E]) -> Iterator[E]:
    return (event for event in trace.events if isinstance(event, kind))


def _stopped(trace: Trace, hop: str) -> bool:
    return trace.scenario.shutdown is not None and trace.scenario.shutdown.hop == hop


_MODELS_WORK = ("turn", "shortening")


def _hop(work: Work) -> str:
    return LLM_PROXY if work.kind in _MODELS_WORK else TOOL_RUNNER


def _ends(trace: Trace, work: Work) -> TurnEnd | None:
    """How the turn was to end; None for what is no turn."""
    return trace.scripts[work.run].turn(int(work.place[1:])).end if work.kind == "turn" else None


def _keeps(trace: Trace, tool: str) -> float:
    """For how many seconds results of a tool are kept."""
    store = trace.scenario.store
    return 0.0 if store is None else {"look": LOOK_KEPT_FOR, "fetch": store.fetch_for}.get(tool, 0.0)


def _call(trace: Trace, run: int, place: str) -> CallScript:
    turn, step = map(int, place.partition("t")[2].split("s"))
    call = trace.scripts[run].turn(turn).steps[step].call
    assert call is not None
    return call


@dataclass(frozen=True, slots=True)
class _Result:
    """What the orchestrator said of a tool call that was over, and when."""

    began_at: float
    at: float
    status: int
    content: str


def _told(trace: Trace) -> dict[tuple[int, str], _Result]:
    """By the run and the place of the call; as its clients were told."""
    began = {event.run_id: event.started_at for event in _of(trace, CallStarted) if event.method.endswith("/Run")}
    told: dict[tuple[int, str], _Result] = {}
    for seen in trace.seen:
        for heard in seen.heard:
            over = heard.response.tool_call_finished
            if over.call_id and seen.run_id in began:
                at = began[seen.run_id] + heard.response.elapsed_us / 1_000_000
                told[seen.run, over.call_id] = _Result(at - over.elapsed_us / 1_000_000, at, over.status, over.content)
    return told


def _results(trace: Trace, run: int) -> list[_Result]:
    return [told for (whose, _), told in _told(trace).items() if whose == run]


def _is_too_long(trace: Trace, result: _Result) -> bool:
    return trace.scenario.results is not None and len(result.content) > trace.scenario.results.longest


def _in_time(trace: Trace, work: Work) -> bool:
    """Whether what a model wrote had the time to arrive."""
    due = next((event.due_at for event in _of(trace, RunEnded) if event.run_id == work.run_id), -inf)
    return work.ended + 4 * trace.scenario.transit + EXACT < min(work.deadline, due)


def _outside(spans: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]) -> float:
    """Seconds that are in one of `spans` and in none of `others`."""
    changes = sorted(
        [(at, end, 0) for one in spans for at, end in zip(one, (1, -1), strict=True)]
        + [(at, 0, end) for one in others for at, end in zip(one, (1, -1), strict=True)]
    )
    total, inside, hidden = 0.0, 0, 0
    for before, after in pairwise(changes):
        inside, hidden = inside + before[1], hidden + before[2]
        total += after[0] - before[0] if inside and not hidden else 0.0
    return total


def _shortens(trace: Trace, work: Work) -> TurnEnd | None:
    """How the shortening of a result was to end; None for what is none."""
    return _call(trace, work.run, work.place).shortened.end if work.kind == "shortening" else None


def _most_at_once(works: Sequence[Work]) -> int:
    # What goes on after its deadline has lost its place.
    return _most_spans([(work.began, min(work.ended, work.deadline)) for work in works])


def _most_spans(spans: Sequence[tuple[float, float]]) -> int:
    # What ends at an instant has made room for what begins at it.
    changes = sorted(change for began, ended in spans for change in ((began, 1), (ended, -1)))
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def _named(work: Work) -> str:
    return f"{work.kind} {work.name} of run {work.run} ({work.place}, attempt {work.attempt})"
