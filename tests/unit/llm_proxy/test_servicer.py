"""The llm-proxy behind its stubs: real messages, real interceptor, real scopes, virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from deadlinemesh.admission.times import ENOUGH
from deadlinemesh.deadline import DeadlineContext, entered
from deadlinemesh.errors import NotFound, Shed, UpstreamRefused
from deadlinemesh.llm_proxy.service import ModelService
from deadlinemesh.llm_proxy.servicer import build
from deadlinemesh.policy.model import OpenAIModel, Policy
from deadlinemesh.testing.memory import MemoryChannel, MemoryServer
from deadlinemesh.testing.virtual_time import clock, run
from deadlinemesh.transport.gates import MeshGate
from deadlinemesh.transport.inbound import DeadlineInterceptor
from deadlinemesh.transport.outbound import MeshChannel
from deadlinemesh.transport.status import error_from
from deadlinemesh.v1 import common_pb2, llm_proxy_pb2, llm_proxy_pb2_grpc
from deadlinemesh.vocabulary import (
    FinishReason,
    Message,
    ModelEvent,
    Role,
    TextDelta,
    ToolCall,
    TurnFinished,
    TurnRequest,
    Writing,
)

POLICY = Policy.model_validate(
    {
        "tiers": {"free": {"run_budget": "30s", "iterations": 2}},
        "tenants": {
            "acme": {"tier": "free", "api_keys": ["sha256:" + "0" * 64]},
            "globex": {"tier": "free", "api_keys": ["sha256:" + "1" * 64], "models": ["small"]},
        },
        "models": {
            "demo": {"provider": "scripted", "slots": 1, "max_output_tokens": 50},
            "small": {"provider": "scripted"},
        },
    }
)
HELLO = common_pb2.Message(role=common_pb2.ROLE_USER, content="hello")


class FakeProvider:
    """Plays `script`: waits for numbers, raises errors, yields the rest. Keeps its turns and how many are open."""

    def __init__(self, *script: ModelEvent | Exception | float) -> None:
        self.script = script
        self.turns: list[TurnRequest] = []
        self.open = 0
        self.closed = False

    async def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        self.turns.append(turn)
        self.open += 1
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, (int, float)):
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            self.open -= 1

    async def aclose(self) -> None:
        self.closed = True


ENDED = TurnFinished(FinishReason.STOP, 11, 3)
Test = Callable[[Any], Awaitable[None]]


def serving(provider: FakeProvider, test: Test, tenant: str = "acme", seconds: float = 10.0) -> DeadlineInterceptor:
    """Run `test` with a stub, as `tenant` with `seconds` to spend. Nothing may be left afterwards."""

    interceptor = serving_policy(POLICY, test, {"demo": provider, "small": provider}, tenant, seconds)
    assert provider.open == 0
    assert provider.closed
    return interceptor


def serving_policy(
    policy: Policy,
    test: Test,
    providers: dict[str, FakeProvider] | None = None,
    tenant: str = "acme",
    seconds: float = 10.0,
) -> DeadlineInterceptor:
    async def main() -> DeadlineInterceptor:
        servicer = build(policy, clock(), providers)
        interceptor = DeadlineInterceptor("llm-proxy", MeshGate("llm-proxy", "s3cret", clock()), clock=clock())
        server = MemoryServer(interceptor)
        llm_proxy_pb2_grpc.add_LlmProxyServiceServicer_to_server(servicer, server)  # type: ignore[arg-type]
        stub = llm_proxy_pb2_grpc.LlmProxyServiceStub(MeshChannel(MemoryChannel(server), "s3cret"))
        now = clock().monotonic()
        context = DeadlineContext(tenant, now + seconds, "free", "0" * 31 + "1", "run-1", now, clock())
        with entered(context):
            await test(stub)
        await interceptor.scopes.emptied()
        await servicer.aclose()
        return interceptor

    return run(main())


def request(**fields: Any) -> llm_proxy_pb2.GenerateRequest:
    return llm_proxy_pb2.GenerateRequest(**{"model": "demo", "messages": [HELLO], **fields})


async def refusal(stub: Any, **fields: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in stub.Generate(request(**fields)):
            pass
    return raised.value


def test_a_turn_is_started_streamed_and_accounted_for() -> None:
    call = ToolCall("c1", "look", '{"a": 1}')
    said = (TextDelta("one "), 0.25, TextDelta("two"), Writing(), call)
    provider = FakeProvider(0.5, *said, 0.25, ENDED)

    async def test(stub: Any) -> None:
        events = [event async for event in stub.Generate(request())]
        kinds = ["started", "text", "text", "writing", "tool_call", "finished"]
        assert [event.WhichOneof("event") for event in events] == kinds
        assert events[0].started == llm_proxy_pb2.GenerateStarted(model="demo", queue_us=0)
        assert events[4].tool_call == common_pb2.ToolCall(id="c1", name="look", arguments_json='{"a": 1}')
        finished = events[-1].finished
        assert finished.reason == llm_proxy_pb2.FINISH_REASON_STOP
        assert finished.usage == common_pb2.Usage(input_tokens=11, output_tokens=3, model_calls=1)
        assert (finished.spend.hop, finished.spend.elapsed_us) == ("llm-proxy", 1_000_000)
        assert {phase.phase: phase.spent_us for phase in finished.spend.phases} == {
            common_pb2.PHASE_LLM_FIRST_TOKEN: 500_000,
            common_pb2.PHASE_LLM_STREAM: 500_000,
        }

    serving(provider, test)


def test_the_wait_for_a_slot_is_told_and_charged_to_the_queue() -> None:
    async def test(stub: Any) -> None:
        async def turn() -> list[Any]:
            return [event async for event in stub.Generate(request())]

        second = (await asyncio.gather(turn(), turn()))[1]
        assert second[0].started.queue_us == 2_000_000
        phases = {phase.phase: phase.spent_us for phase in second[-1].finished.spend.phases}
        assert phases[common_pb2.PHASE_LLM_QUEUE] == 2_000_000

    serving(FakeProvider(2.0, ENDED), test)


def test_the_deadline_closes_the_provider_in_mid_token_and_what_was_sent_stands() -> None:
    provider = FakeProvider(0.5, TextDelta("partial"), 1000.0, ENDED)

    async def test(stub: Any) -> None:
        got = []

        async def read() -> None:
            async for event in stub.Generate(request()):
                got.append(event.WhichOneof("event"))

        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await read()
        assert got == ["started", "text"]
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert clock().monotonic() == pytest.approx(2.0, abs=0.001)

    serving(provider, test, seconds=2.0)


def test_a_caller_that_leaves_frees_the_slot_and_the_provider() -> None:
    provider = FakeProvider(TextDelta("x"), 1000.0, ENDED)

    async def test(stub: Any) -> None:
        async with stub.Generate(request()) as call:
            async for event in call:
                if event.HasField("text"):
                    break
        provider.script = (ENDED,)
        events = [event async for event in stub.Generate(request())]
        assert events[0].started.queue_us < 100_000

    serving(provider, test)


@pytest.mark.parametrize(("first", "doomed"), [(TextDelta("x"), False), (Writing(), True)])
def test_a_turn_that_was_cut_was_of_use_if_it_had_said_something_and_not_if_it_had_begun_a_call(
    first: ModelEvent, doomed: bool
) -> None:
    provider = FakeProvider(0.1, first, 1000.0, ENDED)

    async def test(stub: Any) -> None:
        async def cut(timeout: float) -> str:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                async for _ in stub.Generate(request(), timeout=timeout):
                    pass
            return error_from(raised.value, "llm-proxy").reason

        for more in range(ENOUGH):  # what was cut is news only where it took longer than before
            await cut(1.0 + more)
        assert (await cut(0.5) == "DOOMED") is doomed

    serving(provider, test, seconds=60.0)


def test_a_turn_that_waits_for_a_slot_until_its_deadline_never_reaches_the_provider() -> None:
    provider = FakeProvider(5.0, ENDED)

    async def test(stub: Any) -> None:
        async def first() -> None:
            async for _ in stub.Generate(request()):
                pass

        running = asyncio.ensure_future(first())
        await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in stub.Generate(request(), timeout=1.0):
                pass
        await running
        assert len(provider.turns) == 1

    serving(provider, test)


def test_an_unknown_model_is_refused_with_the_tenants_choices() -> None:
    async def test(stub: Any) -> None:
        for model in ("demo", "gpt-9", ""):
            error = await refusal(stub, model=model)
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert error_from(error, "llm-proxy").violations[0].field == "model"  # type: ignore[attr-defined]
            assert "one of small" in error.details()

    serving(FakeProvider(ENDED), test, tenant="globex")


def test_a_tenant_that_policy_does_not_know_is_refused() -> None:
    async def test(stub: Any) -> None:
        assert "no tenant 'stranger'" in (await refusal(stub)).details()

    serving(FakeProvider(ENDED), test, tenant="stranger")


def test_a_malformed_conversation_is_refused_with_every_field() -> None:
    async def test(stub: Any) -> None:
        tool = common_pb2.ToolSpec(name="look", arguments_schema_json="{")
        answer = common_pb2.Message(role=common_pb2.ROLE_TOOL, tool_call_id="c1")
        error = await refusal(stub, messages=[common_pb2.Message(content="?"), answer], tools=[tool])
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        fields = [violation.field for violation in error_from(error, "llm-proxy").violations]  # type: ignore[attr-defined]
        assert fields == ["tools[0].arguments_schema_json", "messages[0].role", "messages[1].tool_call_id"]

    serving(FakeProvider(ENDED), test)


@pytest.mark.parametrize(("asked", "given"), [(0, 50), (20, 20), (51, 50)])
def test_the_models_own_limit_on_tokens_stands(asked: int, given: int) -> None:
    provider = FakeProvider(ENDED)

    async def test(stub: Any) -> None:
        async for _ in stub.Generate(request(max_output_tokens=asked)):
            pass

    serving(provider, test)
    assert provider.turns[0].max_output_tokens == given


def test_a_provider_that_refuses_for_load_is_told_with_its_phase_and_its_wait() -> None:
    async def test(stub: Any) -> None:
        error = error_from(await refusal(stub), "llm-proxy")
        assert isinstance(error, Shed)
        assert (error.retry_after, error.hop, error.phase) == (7.0, "llm-proxy", "llm_first_token")

    serving(FakeProvider(1.0, Shed("busy", retry_after=7.0)), test)


def test_a_stream_that_ends_without_its_last_event_is_a_failure_of_the_provider() -> None:
    async def test(stub: Any) -> None:
        error = await refusal(stub)
        assert error.code() is grpc.StatusCode.UNAVAILABLE

    serving(FakeProvider(TextDelta("x")), test)


def test_a_tenant_is_told_its_models_in_the_order_of_policy() -> None:
    def models_of(tenant: str) -> list[str]:
        names: list[str] = []

        async def test(stub: Any) -> None:
            response = await stub.ListModels(llm_proxy_pb2.ListModelsRequest())
            names.extend(model.name for model in response.models)
            assert response.models[0].provider == "scripted"
            assert response.models[0].slots == POLICY.models[names[0]].slots

        serving(FakeProvider(), test, tenant=tenant)
        return names

    assert models_of("acme") == ["demo", "small"]
    assert models_of("globex") == ["small"]


KEYED = POLICY.model_copy(
    update={"models": {**POLICY.models, "gpt": OpenAIModel(provider="openai", model="gpt-x", api_key_env="GPT_KEY")}}
)


def test_a_model_whose_key_is_missing_refuses_its_turns_and_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("GPT_KEY", raising=False)

    async def test(stub: Any) -> None:
        error = error_from(await refusal(stub, model="gpt"), "llm-proxy")
        assert isinstance(error, UpstreamRefused), "lasting: not to be tried again, but a fallback takes over"
        assert str(error) == "model gpt cannot be used here; the llm-proxy's log says why"
        events = [event async for event in stub.Generate(request(model="small"))]
        assert events[-1].finished.reason == llm_proxy_pb2.FINISH_REASON_STOP
        listed = (await stub.ListModels(llm_proxy_pb2.ListModelsRequest())).models
        assert {model.name: model.slots for model in listed} == {"demo": 1, "small": 64, "gpt": 0}

    serving_policy(KEYED, test)
    assert [record.levelname for record in caplog.records if "GPT_KEY" in record.getMessage()] == ["WARNING"]


def test_a_proxy_without_any_usable_model_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_KEY", "")
    alone = POLICY.model_copy(update={"models": {"gpt": KEYED.models["gpt"]}})
    with pytest.raises(ValueError, match=r"no model can be used; model gpt cannot be used: .*GPT_KEY"):
        build(alone)


def test_policy_alone_makes_a_working_proxy() -> None:
    servicer = build(POLICY)
    run(servicer.aclose())


def test_another_policy_is_for_turns_to_come_and_the_old_provider_stays_until_its_turns_are_over() -> None:
    old, new = FakeProvider(TextDelta("old"), 2.0, ENDED), FakeProvider(TextDelta("new"), ENDED)
    changed = POLICY.model_copy(update={"models": {"demo": POLICY.models["demo"].model_copy(update={"slots": 3})}})

    async def main() -> None:
        service = ModelService(POLICY, {"demo": old, "small": old}, clock())

        async def turn(seconds: float = 10.0) -> list[str]:
            now = clock().monotonic()
            with entered(DeadlineContext("acme", now + seconds, "free", "0" * 31 + "1", "run-1", now, clock())):
                events = service.generate(TurnRequest("demo", (Message(Role.USER, "hello"),)))
                return [event.text async for event in events if isinstance(event, TextDelta)]

        first = asyncio.ensure_future(turn())
        await asyncio.sleep(0.5)
        ending = asyncio.ensure_future(service.replace(changed, {"demo": new}).end())
        assert await turn() == ["new"]
        assert clock().monotonic() == pytest.approx(0.5)  # there are more slots now
        assert not old.closed
        assert await first == ["old"]
        await ending
        assert old.closed
        assert not new.closed

    run(main())


def test_a_run_keeps_what_a_reload_takes_away_to_its_end() -> None:
    old, new = FakeProvider(TextDelta("old"), ENDED), FakeProvider(TextDelta("new"), ENDED)
    both = {"demo": old, "small": old}
    acme_alone = {"acme": POLICY.tenants["acme"]}
    without_globex = POLICY.model_copy(update={"tenants": acme_alone})
    without_demo = POLICY.model_copy(update={"tenants": acme_alone, "models": {"small": POLICY.models["small"]}})

    async def main() -> None:
        service = ModelService(POLICY, both, clock())

        async def turn(tenant: str, model: str, seconds: float) -> list[str]:
            now = clock().monotonic()
            with entered(DeadlineContext(tenant, now + seconds, "free", "0" * 31 + "1", "run-1", now, clock())):
                events = service.generate(TurnRequest(model, (Message(Role.USER, "hello"),)))
                return [event.text async for event in events if isinstance(event, TextDelta)]

        assert service.replace(without_globex, {"demo": new, "small": new}).needed_for == 30.0
        await asyncio.sleep(10.0)
        assert await turn("globex", "small", 20.0) == ["new"]  # the model is there still
        rest = service.replace(without_demo, {"small": new})
        assert await turn("acme", "demo", 29.0) == ["new"]
        with pytest.raises(NotFound) as refused:  # a run that began under the policy in force may have so much time
            await turn("globex", "small", 20.1)
        assert "acme" not in str(refused.value)
        with pytest.raises(NotFound, match="'demo' is unknown or not yours: one of small"):
            await turn("acme", "demo", 30.1)
        await asyncio.sleep(20.0)
        with pytest.raises(NotFound, match="has no tenant 'globex'"):
            await turn("globex", "small", 0.1)
        assert rest.needed_for == 30.0

    run(main())
