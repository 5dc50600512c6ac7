"""What happens in one simulated world: who calls, how long everything takes, and what goes wrong.

Every detail is a choice between a few options, of which the first is the calmest. So the choices, one after the other, are
the digits of one integer: it names the scenario, any integer names one, and the smaller it is the less happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum, StrEnum
from typing import Any, TypeVar

__all__ = [
    "Attempt",
    "Attempted",
    "CallScript",
    "Choices",
    "Client",
    "Leaving",
    "Results",
    "RunScript",
    "Scenario",
    "Shortened",
    "Shutdown",
    "Step",
    "Store",
    "StoreEnd",
    "StoreStep",
    "Turn",
    "TurnEnd",
    "chosen",
    "named",
]

T = TypeVar("T")

FOR_EVER = 1e6
"""Seconds that no run has."""

TENANTS = {"cora": "free", "dora": "free", "bolt": "professional", "acme": "enterprise"}
MODELS = ("plain", "other")
SHORTENER = "brief"
"""A model that does nothing but shorten tool results. Another one may have to do it."""
IDEMPOTENT = {"look": True, "change": False, "fetch": True, "post": False, "grind": True}
"""The tools, and whether they may be retried: two Python functions, two HTTP endpoints, and a function for a worker process."""
HOPS = ("tool-runner", "llm-proxy", "orchestrator")
HTTP_TOOLS = frozenset({"fetch", "post"})
UNKNOWN_TOOL = "guess"
LOOK_KEPT_FOR = 20.0
"""Seconds for which results of `look` are kept, where there is a store."""


class TurnEnd(StrEnum):
    """How a model ends its turn."""

    STOPS = "stops"
    AT_ITS_LIMIT = "is cut by its token limit"
    NEVER = "never ends"
    FAILS = "fails"
    SHEDS = "refuses for load"
    BREAKS = "raises something unforeseen"
    SILENTLY = "ends its stream without a word"


class Attempted(StrEnum):
    """What comes of one attempt at a tool."""

    WORKS = "works"
    FAILS = "fails for good"
    IS_TRANSIENT = "fails for now"
    BREAKS = "raises something unforeseen"
    LOSES_ITS_CONNECTION = "loses its connection"
    NEVER = "never ends"
    CANCELS_ITSELF = "cancels itself"
    LEAVES_A_TASK = "works, and leaves a task behind"


class StoreEnd(StrEnum):
    """What comes of one operation of the store that keeps results."""

    WORKS = "works"
    FAILS = "fails"
    NEVER = "never answers"
    CANCELS_ITSELF = "cancels itself"


class Leaving(StrEnum):
    """How a client ends its run early."""

    NOT = "it does not"
    HANGS_UP = "cancels its call"
    CANCELS_THE_RUN = "calls CancelRun"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a tool call. Durations here and below are in seconds."""

    takes: float = 0.0
    comes_to: Attempted = Attempted.WORKS
    retry_after: float | None = None
    progress: int = 0
    """How often it tells its progress meanwhile."""
    clings: float = 0.0
    """How long it goes on after it was told to stop."""


@dataclass(frozen=True, slots=True)
class Shortened:
    """How the other model shortens what a tool answered, if that is too long."""

    after: float = 0.0
    says: int = 40
    """Characters."""
    calls: bool = False
    """Whether it calls a tool, too, though it is offered none."""
    end: TurnEnd = TurnEnd.STOPS
    clings: float = 0.0


@dataclass(frozen=True, slots=True)
class CallScript:
    """A tool call that a model makes."""

    tool: str = "look"
    valid: bool = True
    """Whether the arguments fit the schema."""
    attempts: tuple[Attempt, ...] = (Attempt(),)
    """The last one is for all that follow, too."""
    asks: int | None = None
    """Which question it asks of those that others ask too; None for one of its own."""
    answers: int = 0
    """Characters that the tool's answer is longer than it need be."""
    shortened: Shortened = Shortened()

    def attempt(self, number: int) -> Attempt:
        """Attempt `number`, from 1."""
        return self.attempts[min(number, len(self.attempts)) - 1]


@dataclass(frozen=True, slots=True)
class Step:
    """What a model says after a while: text, or a call."""

    after: float = 0.0
    call: CallScript | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a model."""

    steps: tuple[Step, ...] = ()
    end: TurnEnd = TurnEnd.STOPS
    end_after: float = 0.0
    ends_so: int = 99
    """So many attempts at the turn end in this way; the next one stops."""
    clings: float = 0.0
    obeys: bool = True
    """Whether it keeps from calling tools where it is offered none."""

    def asks(self, step: int) -> int | None:
        """Which common question the call of a step asks. Of two in one turn that ask the same, the second asks its own: the tool
        could not tell them apart.
        """
        call = self.steps[step].call
        before = [one.call for one in self.steps[:step] if one.call is not None]
        if call is None or any((one.tool, one.asks) == (call.tool, call.asks) for one in before):
            return None
        return call.asks


@dataclass(frozen=True, slots=True)
class Client:
    """How a client behaves that has called. `*_after` count from its call."""

    timeout: float | None = None
    leaving: Leaving = Leaving.NOT
    leaves_after: float = 0.0
    looks_after: float | None = None
    """When it asks for its run by GetRun, to see the history."""
    joined_after: float | None = None
    """When a second client attaches to the same run."""
    joiner_leaves_after: float | None = None
    """When that one hangs up, from its own call; None for never."""


@dataclass(frozen=True, slots=True)
class RunScript:
    """One run: whose, and how its model and its tools behave."""

    tenant: str = "cora"
    arrives_at: float = 0.0
    client: Client = Client()
    model: str = MODELS[0]
    turns: tuple[Turn, ...] = (Turn(),)

    def turn(self, number: int) -> Turn:
        """Turn `number`, from 0. A run that takes more than there are goes on with the last one, without its calls."""
        if number < len(self.turns):
            return self.turns[number]
        last = self.turns[-1]
        return replace(last, steps=tuple(replace(step, call=None) for step in last.steps))


@dataclass(frozen=True, slots=True)
class StoreStep:
    """One operation of the store, a read or a write."""

    takes: float = 0.0
    comes_to: StoreEnd = StoreEnd.WORKS
    clings: float = 0.0


@dataclass(frozen=True, slots=True)
class Store:
    """Where the tool-runner keeps results of idempotent tools. The operations take the steps in turn, over and over."""

    fetch_for: float = 60.0
    """Seconds for which results of `fetch` are kept; 0 for not at all."""
    most_bytes: int = 1_000_000
    reads: tuple[StoreStep, ...] = (StoreStep(),)
    writes: tuple[StoreStep, ...] = (StoreStep(),)


@dataclass(frozen=True, slots=True)
class Results:
    """What models are given of the tools' results."""

    longest: int = 200
    """Characters of one of them."""
    shortener: str | None = None
    """The model that shortens longer ones; None where they are cut."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """A hop stops, as a process does that is told to and whose patience is at an end: for good."""

    hop: str
    at: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """One world."""

    seed: int = 0
    transit: float = 0.0
    """Of each message between any two hops."""
    rounding: float = 1.0
    """What the wire makes of a `grpc-timeout`: so many times as much."""
    user_agent: str = ""
    slots: int = 2
    """Turns that each model takes at once."""
    connections: int = 2
    """Calls that the HTTP tools' host takes at once."""
    places: int = 1000
    """Runs that the orchestrator takes at once."""
    most_waiting: int = 256
    """Of one tenant, in one line."""
    falls_back: bool = False
    """Whether the second model takes the place of the first where that fails."""
    shutdown: Shutdown | None = None
    store: Store | None = None
    results: Results | None = None
    """None where the models are given more than any tool says."""
    workers: int = 2
    """Processes that there may be for tools that block."""
    luck: int = 0
    """What is drawn at random, such as backoffs, depends on it and on nothing else."""
    runs: tuple[RunScript, ...] = ()

    def __str__(self) -> str:
        """As code that makes it, without what is as calm as can be."""
        runs = "".join(f"\n    {_told(run)}," for run in self.runs)
        return f"{_told(replace(self, seed=0, runs=()))[:-1]}, runs=({runs}\n))".replace("(, ", "(")


class Choices:
    """Makes choices and remembers them: `seed` is the number whose digits they are.

    `decide` is given how many options there are and tells which one to take. `grouped` makes what belongs together, so that
    it can be left out together.
    """

    def __init__(
        self,
        decide: Callable[[int], int],
        grouped: Callable[[Callable[[], RunScript | None]], RunScript | None] = lambda make: make(),
    ) -> None:
        self.seed = 0
        self.grouped = grouped
        self._decide = decide
        self._place = 1

    @classmethod
    def of(cls, seed: int) -> Choices:
        """Those that made `seed`."""
        rest = seed

        def next_digit(options: int) -> int:
            nonlocal rest
            rest, digit = divmod(rest, options)
            return digit

        return cls(next_digit)

    def one(self, options: Sequence[T]) -> T:
        """One of `options`."""
        index = self._decide(len(options))
        self.seed += index * self._place
        self._place *= len(options)
        return options[index]

    def rarely(self, one_in: int) -> bool:
        """True once in so many times."""
        return self.one(range(one_in)) == one_in - 1

    def seconds(self) -> float:
        """Any duration from nothing to minutes: a millisecond is as likely as ten seconds."""
        return self.one(_DURATIONS)


def _told(value: Any) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, tuple):
        return f"({''.join(f'{_told(item)}, ' for item in value).rstrip()})"
    if not is_dataclass(value):
        return repr(value)
    told = ((one.name, getattr(value, one.name)) for one in fields(value) if getattr(value, one.name) != one.default)
    return f"{type(value).__name__}({', '.join(f'{name}={_told(what)}' for name, what in told)})"


_DURATIONS = (0.0, *(round(0.001 * 1.1**step, 6) for step in range(100)), 20.0, 40.0, 90.0, 180.0)
_TIMEOUTS = (
    None,
    None,
    None,
    0.1,
    0.2,
    0.2,
    0.3,
    0.3,
    0.5,
    0.5,
    1.0,
    1.0,
    2.5,
    2.5,
    7.3,
    7.3,
    20.0,
    31.0,
    120.0,
    400.0,
)
_WIRES = ((1.0, ""), (1.0, "grpc-go/1.71.0"), (1.01, ""), (1.03, "grpc-c/48.0.0"), (1.045, ""))
_MOST_RUNS = 20


def _mostly(calm: T, parts: int, others: Sequence[T]) -> tuple[T, ...]:
    """Options of which `calm` is taken so many times as often as all `others` together."""
    return (*(calm,) * (parts * len(others)), *others)


_NOW_AND_THEN = _mostly(0.0, 3, _DURATIONS)
_SELDOM_AT_ALL: tuple[float | None, ...] = _mostly(None, 6, _DURATIONS)
_CLING = (0.1, 0.3, 1.0, 6.0)
_MODEL_CLINGS, _TOOL_CLINGS = _mostly(0.0, 11, _CLING), _mostly(0.0, 3, _CLING)
_OFTEN_CLINGS = _mostly(0.0, 1, _CLING)
_LEAVING = (*(Leaving.NOT,) * 5, Leaving.HANGS_UP, Leaving.HANGS_UP, Leaving.CANCELS_THE_RUN)
_ENDS = _mostly(TurnEnd.STOPS, 3, tuple(TurnEnd)[1:])
_OUTCOMES = (*(Attempted.WORKS,) * 8, *(Attempted.IS_TRANSIENT,) * 4, *tuple(Attempted)[1:])
_WISHES = (*(None,) * 6, 0.0, 1.0, 1.0, 2.0, 5.0, 60.0)
_STORE_TAKES = _mostly(0.0, 2, (0.001, 0.01, 0.04, 0.2, 1.0, 4.0, 20.0))
_STORE_ENDS = (*(StoreEnd.WORKS,) * 18, *tuple(StoreEnd)[1:], StoreEnd.NEVER)
_SHORTENED_ENDS = _mostly(TurnEnd.STOPS, 1, tuple(TurnEnd)[1:])
_TOOLS = _mostly("look", 19, (UNKNOWN_TOOL,)) + ("look", "fetch", "change", "post") * 9
_SOME_TOOLS = ("look", "fetch", "change", "post")
_KEPT_TOOLS = _TOOLS + ("look", "look", "fetch") * 12


def named(seed: int) -> Scenario:
    """The scenario that `seed` names."""
    return chosen(Choices.of(seed))


def chosen(choices: Choices) -> Scenario:
    """The scenario that is chosen."""
    transit = choices.one((0.0, 0.0002, 0.0005, 0.002))
    rounding, user_agent = choices.one(_WIRES)
    slots, connections = choices.one((2, 1, 3)), choices.one((2, 1))
    places, most_waiting = choices.one((1000, 1000, 8, 12)), choices.one((256, 256, 1))
    falls_back = choices.one((False, True))
    shutdown = Shutdown(choices.one(HOPS), choices.seconds()) if choices.rarely(8) else None
    store = _store(choices) if choices.one((False, True)) else None
    results = Results(200, choices.one((SHORTENER, SHORTENER, *MODELS, None))) if choices.one((False, True)) else None
    workers = choices.one((2, 1, 3))
    world = _World(store is not None, results is not None, choices.one((False, False, True)))
    luck = choices.one(range(100))
    runs: list[RunScript] = []
    while len(runs) < _MOST_RUNS and (
        run := choices.grouped(lambda: _run(choices, world) if choices.one(range(24)) else None)
    ):
        runs.append(run)
    bounds = slots, connections, places, most_waiting, falls_back
    return Scenario(
        choices.seed, transit, rounding, user_agent, *bounds, shutdown, store, results, workers, luck, tuple(runs)
    )


@dataclass(frozen=True, slots=True)
class _World:
    """What there is in a world besides its runs."""

    keeps: bool
    shortens: bool
    grinds: bool
    """Whether many calls are made in worker processes."""


def _store(choices: Choices) -> Store:
    return Store(
        fetch_for=choices.one((60.0, 600.0, 60.0, 5.0, 0.5, 0.0)),
        most_bytes=choices.one((1_000_000, 1_000_000, 1_000_000, 2_500, 900, 100)),
        reads=_store_steps(choices),
        writes=_store_steps(choices),
    )


def _store_steps(choices: Choices) -> tuple[StoreStep, ...]:
    return tuple(
        StoreStep(choices.one(_STORE_TAKES), choices.one(_STORE_ENDS), choices.one(_OFTEN_CLINGS))
        for _ in range(choices.one((1, 2, 3)))
    )


def _run(choices: Choices, world: _World) -> RunScript:
    return RunScript(
        tenant=choices.one(("cora", "dora", "bolt", "acme", "acme")),
        arrives_at=choices.one((0.0, 0.0, 0.0, 0.001, 0.02, 0.1, 0.5, 2.0)),
        client=_client(choices),
        model=choices.one((MODELS[0], MODELS[0], MODELS[1])),
        turns=tuple(_turn(choices, world) for _ in range(choices.one((1, 1, 2, 2, 3)))),
    )


def _client(choices: Choices) -> Client:
    timeout = choices.one(_TIMEOUTS)
    leaving = choices.one(_LEAVING)
    joined_after = choices.one(_SELDOM_AT_ALL)
    return Client(
        timeout=None if timeout is None else round(timeout * (1 + choices.one(range(200)) / 1000), 6),
        leaving=leaving,
        leaves_after=0.0 if leaving is Leaving.NOT else choices.seconds(),
        looks_after=choices.one(_SELDOM_AT_ALL),
        joined_after=joined_after,
        joiner_leaves_after=choices.seconds() if joined_after is not None and choices.one((False, True)) else None,
    )


def _turn(choices: Choices, world: _World) -> Turn:
    return Turn(
        steps=tuple(_step(choices, world) for _ in range(choices.one((1, 0, 1, 1, 2, 2, 3)))),
        end=choices.one(_ENDS),
        ends_so=choices.one((99, 1, 2)),
        end_after=choices.one(_NOW_AND_THEN),
        clings=choices.one(_MODEL_CLINGS),
        obeys=choices.one((True, True, False)),
    )


def _step(choices: Choices, world: _World) -> Step:
    return Step(choices.seconds(), _call(choices, world) if choices.one((False, True, True)) else None)


def _call(choices: Choices, world: _World) -> CallScript:
    return CallScript(
        tool=choices.one(("grind",) * 2 + _SOME_TOOLS if world.grinds else _KEPT_TOOLS if world.keeps else _TOOLS),
        valid=choices.one((True,) * 29 + (False,)),
        attempts=tuple(_attempt(choices) for _ in range(choices.one((1, 2, 2, 3)))),
        asks=choices.one((0, 0, 0, 0, 1, None)) if world.keeps else None,
        answers=choices.one((0, 300, 300, 2000)) if world.shortens else 0,
        shortened=_shortened(choices) if world.shortens else Shortened(),
    )


def _shortened(choices: Choices) -> Shortened:
    return Shortened(
        after=choices.one(_NOW_AND_THEN),
        says=choices.one((40, 40, 190, 0, 3000, 3000)),
        calls=choices.one((False,) * 9 + (True,)),
        end=choices.one(_SHORTENED_ENDS),
        clings=choices.one(_OFTEN_CLINGS),
    )


def _attempt(choices: Choices) -> Attempt:
    comes_to = choices.one(_OUTCOMES)
    return Attempt(
        takes=choices.seconds(),
        comes_to=comes_to,
        retry_after=choices.one(_WISHES) if comes_to is Attempted.IS_TRANSIENT else None,
        progress=choices.one((0, 0, 0, 1, 3)),
        clings=choices.one(_TOOL_CLINGS),
    )
