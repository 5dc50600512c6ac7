import datetime

from deadlinemesh.v1 import common_pb2 as _common_pb2
from deadlinemesh.v1 import llm_proxy_pb2 as _llm_proxy_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_COMPLETED: _ClassVar[Outcome]
    OUTCOME_DEADLINE_SPENT: _ClassVar[Outcome]
    OUTCOME_CANCELLED: _ClassVar[Outcome]
    OUTCOME_FAILED: _ClassVar[Outcome]

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_RUNNING: _ClassVar[RunState]
    RUN_STATE_FINISHED: _ClassVar[RunState]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_COMPLETED: Outcome
OUTCOME_DEADLINE_SPENT: Outcome
OUTCOME_CANCELLED: Outcome
OUTCOME_FAILED: Outcome
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_RUNNING: RunState
RUN_STATE_FINISHED: RunState

class RunRequest(_message.Message):
    __slots__ = ("request_id", "prompt", "instructions", "history", "model", "tools", "limits")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTIONS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt: str
    instructions: str
    history: _containers.RepeatedCompositeFieldContainer[_common_pb2.Message]
    model: str
    tools: _containers.RepeatedScalarFieldContainer[str]
    limits: RunLimits
    def __init__(self, request_id: _Optional[str] = ..., prompt: _Optional[str] = ..., instructions: _Optional[str] = ..., history: _Optional[_Iterable[_Union[_common_pb2.Message, _Mapping]]] = ..., model: _Optional[str] = ..., tools: _Optional[_Iterable[str]] = ..., limits: _Optional[_Union[RunLimits, _Mapping]] = ...) -> None: ...

class RunLimits(_message.Message):
    __slots__ = ("max_iterations", "max_output_tokens")
    MAX_ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_iterations: int
    max_output_tokens: int
    def __init__(self, max_iterations: _Optional[int] = ..., max_output_tokens: _Optional[int] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("tenant_id", "tier", "granted_us", "reserve_us", "requested_us", "clipped", "max_iterations")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    GRANTED_US_FIELD_NUMBER: _ClassVar[int]
    RESERVE_US_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_US_FIELD_NUMBER: _ClassVar[int]
    CLIPPED_FIELD_NUMBER: _ClassVar[int]
    MAX_ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    tier: str
    granted_us: int
    reserve_us: int
    requested_us: int
    clipped: bool
    max_iterations: int
    def __init__(self, tenant_id: _Optional[str] = ..., tier: _Optional[str] = ..., granted_us: _Optional[int] = ..., reserve_us: _Optional[int] = ..., requested_us: _Optional[int] = ..., clipped: _Optional[bool] = ..., max_iterations: _Optional[int] = ...) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("elapsed_us", "started", "phase_changed", "text", "tool_call_started", "tool_call_progress", "tool_call_finished", "finished")
    ELAPSED_US_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PHASE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_STARTED_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_FINISHED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    elapsed_us: int
    started: RunStarted
    phase_changed: PhaseChanged
    text: _llm_proxy_pb2.TextDelta
    tool_call_started: ToolCallStarted
    tool_call_progress: ToolCallProgress
    tool_call_finished: ToolCallFinished
    finished: RunFinished
    def __init__(self, elapsed_us: _Optional[int] = ..., started: _Optional[_Union[RunStarted, _Mapping]] = ..., phase_changed: _Optional[_Union[PhaseChanged, _Mapping]] = ..., text: _Optional[_Union[_llm_proxy_pb2.TextDelta, _Mapping]] = ..., tool_call_started: _Optional[_Union[ToolCallStarted, _Mapping]] = ..., tool_call_progress: _Optional[_Union[ToolCallProgress, _Mapping]] = ..., tool_call_finished: _Optional[_Union[ToolCallFinished, _Mapping]] = ..., finished: _Optional[_Union[RunFinished, _Mapping]] = ...) -> None: ...

class RunStarted(_message.Message):
    __slots__ = ("run_id", "request_id", "grant", "trace_id", "model", "attached")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    request_id: str
    grant: Grant
    trace_id: str
    model: str
    attached: bool
    def __init__(self, run_id: _Optional[str] = ..., request_id: _Optional[str] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., trace_id: _Optional[str] = ..., model: _Optional[str] = ..., attached: _Optional[bool] = ...) -> None: ...

class PhaseChanged(_message.Message):
    __slots__ = ("phase", "iteration", "remaining_us", "spent")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    REMAINING_US_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    phase: _common_pb2.Phase
    iteration: int
    remaining_us: int
    spent: _containers.RepeatedCompositeFieldContainer[_common_pb2.PhaseSpend]
    def __init__(self, phase: _Optional[_Union[_common_pb2.Phase, str]] = ..., iteration: _Optional[int] = ..., remaining_us: _Optional[int] = ..., spent: _Optional[_Iterable[_Union[_common_pb2.PhaseSpend, _Mapping]]] = ...) -> None: ...

class ToolCallStarted(_message.Message):
    __slots__ = ("call", "iteration", "remaining_us")
    CALL_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    REMAINING_US_FIELD_NUMBER: _ClassVar[int]
    call: _common_pb2.ToolCall
    iteration: int
    remaining_us: int
    def __init__(self, call: _Optional[_Union[_common_pb2.ToolCall, _Mapping]] = ..., iteration: _Optional[int] = ..., remaining_us: _Optional[int] = ...) -> None: ...

class ToolCallProgress(_message.Message):
    __slots__ = ("call_id", "message", "fraction")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    message: str
    fraction: float
    def __init__(self, call_id: _Optional[str] = ..., message: _Optional[str] = ..., fraction: _Optional[float] = ...) -> None: ...

class ToolCallFinished(_message.Message):
    __slots__ = ("call_id", "name", "status", "content", "elapsed_us", "spend")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_US_FIELD_NUMBER: _ClassVar[int]
    SPEND_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    name: str
    status: _common_pb2.ToolStatus
    content: str
    elapsed_us: int
    spend: _common_pb2.HopSpend
    def __init__(self, call_id: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[_Union[_common_pb2.ToolStatus, str]] = ..., content: _Optional[str] = ..., elapsed_us: _Optional[int] = ..., spend: _Optional[_Union[_common_pb2.HopSpend, _Mapping]] = ...) -> None: ...

class RunFinished(_message.Message):
    __slots__ = ("outcome", "cause", "detail", "answer", "partial", "ledger", "usage", "iterations")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    cause: _common_pb2.Cause
    detail: str
    answer: str
    partial: bool
    ledger: _common_pb2.Ledger
    usage: _common_pb2.Usage
    iterations: int
    def __init__(self, outcome: _Optional[_Union[Outcome, str]] = ..., cause: _Optional[_Union[_common_pb2.Cause, str]] = ..., detail: _Optional[str] = ..., answer: _Optional[str] = ..., partial: _Optional[bool] = ..., ledger: _Optional[_Union[_common_pb2.Ledger, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., iterations: _Optional[int] = ...) -> None: ...

class RunInfo(_message.Message):
    __slots__ = ("run_id", "request_id", "state", "grant", "trace_id", "model", "create_time", "finished")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    request_id: str
    state: RunState
    grant: Grant
    trace_id: str
    model: str
    create_time: _timestamp_pb2.Timestamp
    finished: RunFinished
    def __init__(self, run_id: _Optional[str] = ..., request_id: _Optional[str] = ..., state: _Optional[_Union[RunState, str]] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., trace_id: _Optional[str] = ..., model: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished: _Optional[_Union[RunFinished, _Mapping]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run", "messages")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    run: RunInfo
    messages: _containers.RepeatedCompositeFieldContainer[_common_pb2.Message]
    def __init__(self, run: _Optional[_Union[RunInfo, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[_common_pb2.Message, _Mapping]]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "state")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    state: RunState
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., state: _Optional[_Union[RunState, str]] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "next_page_token")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunInfo]
    next_page_token: str
    def __init__(self, runs: _Optional[_Iterable[_Union[RunInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class CancelRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: RunInfo
    def __init__(self, run: _Optional[_Union[RunInfo, _Mapping]] = ...) -> None: ...
