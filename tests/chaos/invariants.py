"""What must be true of every scenario. Each function gives what speaks against it, in sentences; nothing, if all is well.

Nobody is asked who could be mistaken about itself: the services are heard by the events that they wrote down as things happened,
the world outside by what it was made to do, the clients by what they were told and when, the kernel by what it still runs, and for
how long it let nobody run.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

from tests.chaos.mesh import HIT, RESERVE, ROOM, TENANTS, Scene
from tests.chaos.processes import Life, alive
from tests.chaos.provider import Exchange, marked
from tests.support.seen import Seen, ledger_violations

from deadlinemesh.deadline.scope import REPORT_ORPHAN_AFTER
from deadlinemesh.telemetry import CallEnded, CallStarted, Event, OrphanReported, Retried, RunEnded
from deadlinemesh.v1 import orchestrator_pb2
from deadlinemesh.vocabulary import history_violations

__all__ = ["GONE", "INVARIANTS", "REPORTED", "SOON", "TALLY", "Invariant", "check", "lateness"]

E = TypeVar("E", bound=Event)
Invariant = Callable[[Scene], Iterator[str]]

SOON = 0.05
"""Seconds after its deadline at which nothing that obeys is at work any more."""

REPORTED = REPORT_ORPHAN_AFTER + SOON
"""Seconds after its deadline at which what does not obey has been reported."""

BACKLOG = 0.2
"""Seconds before something is due from when on what holds us up may still make it late."""

GONE = 1.0
"""Seconds after its deadline at which nothing is alive."""

TRANSIT = 0.05
"""Seconds by which a deadline may come to be later on its way: what a call takes to be taken up where a dozen come at once. How
exact it is where nothing is in the way is measured by `dmesh bench drift`."""


def no_work_is_done_after_a_deadline(scene: Scene) -> Iterator[str]:
    """Every hop stops at its own deadline, also where nobody is left to tell it to. Only orphans go on, and they are reported."""
    orphans = {(life.service, event.run_id) for life, event in _of(scene, OrphanReported)}
    for life, call in _of(scene, CallStarted):
        if call.started_at > life.thawed_at(call.deadline_at):
            yield f"{life.service}{call.method} of {call.run_id} began after its deadline"
    for life, ended in _of(scene, CallEnded):
        late = lateness(scene, life.thawed_at(ended.deadline_at), ended.ended_at)
        allowed = REPORTED if (life.service, ended.run_id) in orphans else SOON
        if late > allowed:
            yield f"{life.service}{ended.method} of {ended.run_id} ended {late:.3f} s after its deadline"
    for life, run in _of(scene, RunEnded):
        late = lateness(scene, life.thawed_at(run.due_at), run.ended_at)
        if late > SOON:
            yield f"{run.run_id} ended {late:.3f} s after its answer was due"
    tools = [(life, call) for life, call in _of(scene, CallEnded) if call.method.endswith("/CallTool")]
    for run_made in scene.runs:
        ends = [life.thawed_at(call.deadline_at) for life, call in tools if call.run_id == run_made.run_id]
        for pid in run_made.pids if ends else ():
            late = lateness(scene, max(ends), scene.died.get(pid, inf))
            reported = ("tool-runner", run_made.run_id) in orphans
            if late > GONE or (late > REPORTED and not reported):
                yield f"process {pid} of run {run_made.number} lived for {late:.3f} s after its deadline"
    for exchange in scene.exchanges:
        late = _late(scene, exchange)
        if late > SOON:
            yield f"the {exchange.kind} of run {exchange.run} worked for {late:.3f} s after the run's deadline"


def _late(scene: Scene, exchange: Exchange) -> float:
    """Seconds that the world outside worked for a run beyond its deadline; 0 where nobody could have told it."""
    run = next(run for run in scene.runs if run.number == exchange.run)
    pair = f"{'provider' if exchange.kind == 'model' else 'upstream'} of {run.tenant}"
    service = "llm-proxy" if exchange.kind == "model" else "tool-runner"
    deadlines = [
        life.thawed_at(call.deadline_at)
        for life, call in _of(scene, CallStarted)
        if life.service == service and call.run_id == run.run_id
    ]
    if pair in scene.dirty or not deadlines:
        return 0.0
    return lateness(scene, max(deadlines), inf if exchange.ended_at is None else exchange.ended_at)


def no_deadline_is_later_than_its_parents(scene: Scene) -> Iterator[str]:
    """What a hop is given ends with what its caller has; and so does what the world outside is told."""
    edge = {call.run_id: call for life, call in _of(scene, CallStarted) if life.service == "orchestrator"}
    due = {run.run_id: run.due_at for _, run in _of(scene, RunEnded)}
    for life, call in _of(scene, CallStarted):
        if life.service == "orchestrator" or call.run_id not in edge:
            continue
        # A call that was long on its way, or whose process was stopped, may come late: then it is not at work for longer.
        parent = due.get(call.run_id, edge[call.run_id].deadline_at)
        held_up = scene.mesh.noise.within(call.started_at - BACKLOG, call.started_at + BACKLOG)
        transit = TRANSIT + held_up if not scene.dirty else inf
        if call.deadline_at > parent + transit and call.started_at < parent:
            yield f"{life.service}{call.method} of {call.run_id} got {call.deadline_at - parent:.4f} s more than its caller"
    numbers = {run.number: run.run_id for run in scene.runs}
    for exchange in scene.exchanges:
        if exchange.told is not None and not scene.dirty:
            over = exchange.told - due.get(numbers[exchange.run], inf)
            held_up = scene.mesh.noise.within(exchange.began_at - BACKLOG, exchange.began_at)
            if over > TRANSIT + held_up:
                yield f"the tool of run {exchange.run} was told of {over:.4f} s more than the run has"


def nothing_is_charged_to_the_wrong_tenant(scene: Scene) -> Iterator[str]:
    """Whatever is reported, told or charged for a run is its own tenant's."""
    owners = {run.run_id: run.tenant for run in scene.runs if run.run_id}
    for run in scene.runs:
        for heard in run.heard:
            grant = heard.response.started.grant
            if heard.response.HasField("started") and (grant.tenant_id, grant.tier) != (
                run.tenant,
                TENANTS[run.tenant],
            ):
                yield f"run {run.number} of {run.tenant} was granted to {grant.tenant_id} of tier {grant.tier}"
            others = marked(str(heard.response)) - {run.number}
            if others:
                yield f"the client of run {run.number} was told of run {others}"
        finished = run.seen.finished if run.seen else None
        if finished is not None:
            words = sum(one.words for one in scene.exchanges if one.run == run.number and one.kind == "model")
            if finished.usage.output_tokens > words:
                yield f"run {run.number} is charged {finished.usage.output_tokens} tokens; its models wrote {words}"
    for life, event in scene.events:
        tenant, run_id = getattr(event, "tenant_id", None), getattr(event, "run_id", "")
        if tenant is not None and run_id in owners and tenant != owners[run_id]:
            yield f"{type(event).__name__} of {life.service} names {tenant}; {run_id} is {owners[run_id]}'s"
    for run, messages in scene.histories:
        others = set().union(*(marked(message.content) for message in messages)) - {run.number}
        if others:
            yield f"the history of run {run.number} tells of run {others}"


def every_client_is_answered_before_its_own_timer(scene: Scene) -> Iterator[str]:
    """Who can be reached and has not left is told how its run ended, or why there is none. Nobody waits beyond its own timer."""
    for run in scene.runs:
        seen = run.seen
        who = f"the client of run {run.number} of {run.tenant}"
        if seen is None or seen.ended_at is None:
            yield f"{who} still waits"
        elif seen.left_at is not None:
            continue
        elif seen.timer_at is not None and lateness(scene, seen.timer_at, seen.ended_at) > SOON:
            yield f"{who} waited for {seen.ended_at - seen.timer_at:.3f} s beyond its own timer"
        elif run.tenant in scene.unreachable and not run.probe:
            continue
        elif seen.timer_at is not None and seen.ended_at >= seen.timer_at:
            if _held_up(scene, seen.timer_at) < RESERVE / 2:  # else there was no way to get the answer there in time
                yield f"{who} was not answered before its own timer: {_told(seen)}"
        elif seen.code == "OK" and seen.finished is None:
            yield f"{who} was left without an end"
        elif seen.code != "OK" and not seen.cause:
            yield f"{who} got {seen.code}, and nobody told it why"
        elif seen.finished is not None and seen.finished.partial and not seen.finished.answer:
            yield f"{who} got no word of an answer"


def who_is_spared_notices_nothing(scene: Scene) -> Iterator[str]:
    """The runs of a tenant that no fault hits complete, and so do those that come when all faults are over."""
    for run in scene.runs:
        if (run.probe or run.tenant not in scene.hit) and (run.seen is None or _told(run.seen) != "COMPLETED"):
            yield f"run {run.number} of {run.tenant} was to complete: {run.seen and _told(run.seen)}"


_PEER_LEFT = re.compile(
    r"^\S+ \S+ ERROR +grpc\._cython\.cygrpc ExecuteBatchError raised(.*\n)+?.*cygrpc\.ExecuteBatchError: .*$",
    re.MULTILINE,
)
"""What grpc.aio logs by itself where a status could not be sent any more, as the peer was gone (grpc issue 31570): only noise."""


def every_run_ends_for_the_reason_it_had(scene: Scene) -> Iterator[str]:
    """Nothing that goes wrong outside is taken for a defect of the mesh, and no client is said to have left that has not."""
    for life, call in _of(scene, CallEnded):
        if call.cause == "INTERNAL" or call.code in ("INTERNAL", "UNKNOWN"):
            yield f"{life.service}{call.method} of {call.run_id} failed with {call.code} {call.cause}"
    left = {run.run_id for run in scene.runs if run.left_at is not None or run.tenant in scene.unreachable}
    for _, event in _of(scene, RunEnded):
        if event.outcome == "cancelled" and event.run_id not in left and event.tenant_id not in scene.unreachable:
            yield f"{event.run_id} was cancelled, and nobody had left it"
        if event.cause == "DEADLINE_SPENT" and event.due_at - event.ended_at > SOON:
            yield f"{event.run_id} ended for lack of time with {event.due_at - event.ended_at:.3f} s left"
    for service, log in scene.log.items():
        handled = _PEER_LEFT.sub("", log)
        if " ERROR " in handled or "Traceback" in handled:
            yield f"{service} logs what nobody handled: {log[-3000:]}"


def the_ledger_sums_to_the_elapsed_time(scene: Scene) -> Iterator[str]:
    """The phases divide a run's time without overlap, what they do not explain is said, and nothing exceeds the grant."""
    for run in scene.runs:
        if run.seen is not None:
            seconds = scene.mesh.noise.within(run.seen.sent_at, run.seen.ended_at or inf)
            yield from ledger_violations(run.seen, noise=seconds * 1_000_000)


def retries_keep_within_the_tier_and_the_budget(scene: Scene) -> Iterator[str]:
    """As often as the tier allows, while there is time, and no more than the upstream's budget has."""
    due = {run.run_id: run.due_at for _, run in _of(scene, RunEnded)}
    made: Counter[tuple[str, str]] = Counter()
    for _, retry in _of(scene, Retried):
        made[retry.tenant_id, retry.upstream] += 1
        allowed = scene.mesh.policy.tiers[TENANTS[retry.tenant_id]].tool_retries
        if retry.retry > allowed:
            yield f"{retry.upstream} of {retry.run_id} was tried again {retry.retry} times; {allowed} are allowed"
    for (tenant, upstream), retries in made.items():
        # The floor, fading once in ten seconds, and a fifth of the calls; those in vain count twice, but maybe none was.
        calls = sum(run.tenant == tenant for run in scene.runs) * 4
        most = 6 * (1 + scene.seconds / 10) + 0.2 * calls
        if retries > most:
            yield f"{upstream} of {tenant} was tried again {retries} times in {scene.seconds:.1f} s"
    attempts: dict[tuple[str, str], list[tuple[Life, CallStarted]]] = defaultdict(list)
    for life, call in _of(scene, CallStarted):
        if call.method.endswith(("/CallTool", "/Generate")):
            attempts[call.run_id, call.method].append((life, call))
    finished = {run.run_id: run.seen.finished for run in scene.runs if run.seen and run.seen.finished}
    tenants = {run.run_id: run.tenant for run in scene.runs}
    for (run_id, method), calls_made in attempts.items():
        told = finished.get(run_id)
        if told is None:
            continue
        retries = scene.mesh.policy.tiers[TENANTS[tenants[run_id]]].tool_retries
        usage = told.usage.tool_calls * (1 + retries) if method.endswith("/CallTool") else told.usage.model_calls
        if len(calls_made) > usage:
            yield f"{method} of {run_id} was called {len(calls_made)} times; {usage} are accounted for"
        late = [call for life, call in calls_made if call.started_at > life.thawed_at(due.get(run_id, inf)) + TRANSIT]
        if late and not scene.dirty:
            yield f"{method} of {run_id} was tried again after the run was over"


def the_work_of_a_client_that_left_stops(scene: Scene) -> Iterator[str]:
    """When nobody waits for a run any more, all that is done for it stops, on every hop and beyond."""
    left = {run.run_id: run for run in scene.runs if run.left_at is not None and run.run_id}
    for life, call in _of(scene, CallEnded):
        if call.run_id in left and not scene.dirty:
            late = lateness(scene, life.thawed_at(left[call.run_id].left_at or 0.0), call.ended_at)
            if late > SOON:
                yield f"{life.service}{call.method} of {call.run_id} went on for {late:.3f} s after its client had left"
    gone = {run.number: run.left_at for run in left.values() if run.left_at is not None}
    for exchange in scene.exchanges:
        if exchange.run in gone and not scene.dirty:
            late = lateness(scene, gone[exchange.run], inf if exchange.ended_at is None else exchange.ended_at)
            if late > SOON:
                yield f"the {exchange.kind} of run {exchange.run} worked for {late:.3f} s after its client had left"
    for run in left.values():
        for pid in run.pids:
            late = lateness(scene, run.left_at or 0.0, scene.died.get(pid, inf))
            if late > REPORTED:
                yield f"process {pid} of run {run.number} lived for {late:.3f} s after its client had left"


def slots_and_registries_are_empty_at_the_end(scene: Scene) -> Iterator[str]:
    """In the end nothing is at work, every call that began has ended, and all slots and connections are there for the next."""
    yield from scene.leftovers
    ended = {(event.method, event.run_id, event.started_at) for _, event in _of(scene, CallEnded)}
    for life, call in _of(scene, CallStarted):
        if life.killed_at is None and (call.method, call.run_id, call.started_at) not in ended:
            yield f"{life.service}{call.method} of {call.run_id} never ended"
    runs = [event.run_id for _, event in _of(scene, RunEnded)]
    if len(runs) != len(set(runs)):
        yield "a run ended twice"
    probes = {run.number for run in scene.runs if run.probe and run.tenant == HIT}
    for kind in ("model", "tool"):
        most = _most_at_once([one for one in scene.exchanges if one.run in probes and one.kind == kind])
        if most != ROOM:
            yield f"the {kind} of {HIT} took {most} calls at once in the end; there is room for {ROOM}"
    for run in scene.runs:
        yield from (f"process {pid} of run {run.number} is still alive" for pid in run.pids if alive(pid))


def history_is_always_valid(scene: Scene) -> Iterator[str]:
    """Whenever somebody looks, and whatever a model is given: every tool call has exactly one result."""
    for run, messages in scene.histories:
        wrong = history_violations(messages, "messages")
        if wrong:
            yield f"the history of run {run.number} is not valid: {wrong[0].field}: {wrong[0].description}"
    for exchange in scene.exchanges:
        yield from (f"the model of run {exchange.run} was given {wrong}" for wrong in exchange.invalid)


INVARIANTS: tuple[Invariant, ...] = (
    no_work_is_done_after_a_deadline,
    no_deadline_is_later_than_its_parents,
    nothing_is_charged_to_the_wrong_tenant,
    every_client_is_answered_before_its_own_timer,
    who_is_spared_notices_nothing,
    every_run_ends_for_the_reason_it_had,
    the_ledger_sums_to_the_elapsed_time,
    retries_keep_within_the_tier_and_the_budget,
    the_work_of_a_client_that_left_stops,
    slots_and_registries_are_empty_at_the_end,
    history_is_always_valid,
)


@dataclass(slots=True)
class Tally:
    """What was looked at, and what was found."""

    scenarios: int = 0
    runs: int = 0
    invariants: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    violations: int = 0
    excused: int = 0
    """How often something was late because the machine let none of us run."""

    def __str__(self) -> str:
        return (
            f"{self.runs} runs in {self.scenarios} scenarios, {self.faults.total()} faults injected, "
            f"{self.invariants} invariants checked, {self.violations} violations; "
            f"{self.excused} times something was late only because the machine was busy"
        )


TALLY = Tally()
"""Of this session."""


def check(scene: Scene) -> None:
    """Fail if the scenario breaks an invariant."""
    found = [f"{invariant.__name__}: {what}" for invariant in INVARIANTS for what in invariant(scene)]
    TALLY.scenarios += 1
    TALLY.runs += len(scene.runs)
    TALLY.invariants += len(INVARIANTS)
    TALLY.faults.update(scene.faults)
    TALLY.violations += len(found)
    assert not found, "\n".join(found)


def lateness(scene: Scene, due: float, at: float) -> float:
    """Seconds from when something was due to when it was, less those that the machine did not let us run in."""
    late = at - due
    if late <= SOON or late == inf:
        return late
    held_up = scene.mesh.noise.within(due - BACKLOG, at)
    TALLY.excused += late - held_up <= SOON
    return max(0.0, late - held_up)


def _held_up(scene: Scene, at: float) -> float:
    """Seconds that the machine did not let us run in before an instant."""
    return scene.mesh.noise.within(at - BACKLOG, at)


def _of(scene: Scene, kind: type[E]) -> list[tuple[Life, E]]:
    return [(life, event) for life, event in scene.events if isinstance(event, kind)]


def _told(seen: Seen) -> str:
    """How it ended, in a word."""
    if seen.finished is None:
        return f"{seen.code} {seen.cause}".strip()
    outcome = orchestrator_pb2.Outcome.Name(seen.finished.outcome).removeprefix("OUTCOME_")
    if outcome == "COMPLETED":
        return f"{outcome} in part" if seen.finished.partial else outcome
    return f"{outcome}: {seen.finished.detail}"


def _most_at_once(exchanges: list[Exchange]) -> int:
    changes = sorted([(one.began_at, 1) for one in exchanges] + [(one.ended_at or inf, -1) for one in exchanges])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most
