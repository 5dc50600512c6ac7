from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_ADMISSION: _ClassVar[Phase]
    PHASE_LLM_QUEUE: _ClassVar[Phase]
    PHASE_LLM_FIRST_TOKEN: _ClassVar[Phase]
    PHASE_LLM_STREAM: _ClassVar[Phase]
    PHASE_TOOL_QUEUE: _ClassVar[Phase]
    PHASE_TOOL_CALL: _ClassVar[Phase]
    PHASE_RETRY_BACKOFF: _ClassVar[Phase]
    PHASE_PROCESSING: _ClassVar[Phase]
    PHASE_WRAP_UP: _ClassVar[Phase]
    PHASE_RESPONSE: _ClassVar[Phase]

class Cause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAUSE_UNSPECIFIED: _ClassVar[Cause]
    CAUSE_DEADLINE_SPENT: _ClassVar[Cause]
    CAUSE_DEADLINE_SPENT_UPSTREAM: _ClassVar[Cause]
    CAUSE_CLIENT_CANCELLED: _ClassVar[Cause]
    CAUSE_SHED: _ClassVar[Cause]
    CAUSE_DOOMED: _ClassVar[Cause]
    CAUSE_DRAINING: _ClassVar[Cause]
    CAUSE_UPSTREAM_FAILED: _ClassVar[Cause]
    CAUSE_INTERNAL: _ClassVar[Cause]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]
    ROLE_TOOL: _ClassVar[Role]

class ToolStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOOL_STATUS_UNSPECIFIED: _ClassVar[ToolStatus]
    TOOL_STATUS_OK: _ClassVar[ToolStatus]
    TOOL_STATUS_FAILED: _ClassVar[ToolStatus]
    TOOL_STATUS_INVALID_ARGUMENTS: _ClassVar[ToolStatus]
    TOOL_STATUS_UNKNOWN_TOOL: _ClassVar[ToolStatus]
    TOOL_STATUS_CUT: _ClassVar[ToolStatus]
PHASE_UNSPECIFIED: Phase
PHASE_ADMISSION: Phase
PHASE_LLM_QUEUE: Phase
PHASE_LLM_FIRST_TOKEN: Phase
PHASE_LLM_STREAM: Phase
PHASE_TOOL_QUEUE: Phase
PHASE_TOOL_CALL: Phase
PHASE_RETRY_BACKOFF: Phase
PHASE_PROCESSING: Phase
PHASE_WRAP_UP: Phase
PHASE_RESPONSE: Phase
CAUSE_UNSPECIFIED: Cause
CAUSE_DEADLINE_SPENT: Cause
CAUSE_DEADLINE_SPENT_UPSTREAM: Cause
CAUSE_CLIENT_CANCELLED: Cause
CAUSE_SHED: Cause
CAUSE_DOOMED: Cause
CAUSE_DRAINING: Cause
CAUSE_UPSTREAM_FAILED: Cause
CAUSE_INTERNAL: Cause
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
ROLE_TOOL: Role
TOOL_STATUS_UNSPECIFIED: ToolStatus
TOOL_STATUS_OK: ToolStatus
TOOL_STATUS_FAILED: ToolStatus
TOOL_STATUS_INVALID_ARGUMENTS: ToolStatus
TOOL_STATUS_UNKNOWN_TOOL: ToolStatus
TOOL_STATUS_CUT: ToolStatus

class PhaseSpend(_message.Message):
    __slots__ = ("phase", "spent_us")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SPENT_US_FIELD_NUMBER: _ClassVar[int]
    phase: Phase
    spent_us: int
    def __init__(self, phase: _Optional[_Union[Phase, str]] = ..., spent_us: _Optional[int] = ...) -> None: ...

class HopSpend(_message.Message):
    __slots__ = ("hop", "elapsed_us", "phases")
    HOP_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_US_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    hop: str
    elapsed_us: int
    phases: _containers.RepeatedCompositeFieldContainer[PhaseSpend]
    def __init__(self, hop: _Optional[str] = ..., elapsed_us: _Optional[int] = ..., phases: _Optional[_Iterable[_Union[PhaseSpend, _Mapping]]] = ...) -> None: ...

class Ledger(_message.Message):
    __slots__ = ("granted_us", "elapsed_us", "phases", "unattributed_us")
    GRANTED_US_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_US_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    UNATTRIBUTED_US_FIELD_NUMBER: _ClassVar[int]
    granted_us: int
    elapsed_us: int
    phases: _containers.RepeatedCompositeFieldContainer[PhaseSpend]
    unattributed_us: int
    def __init__(self, granted_us: _Optional[int] = ..., elapsed_us: _Optional[int] = ..., phases: _Optional[_Iterable[_Union[PhaseSpend, _Mapping]]] = ..., unattributed_us: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("input_tokens", "output_tokens", "model_calls", "tool_calls")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODEL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    output_tokens: int
    model_calls: int
    tool_calls: int
    def __init__(self, input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., model_calls: _Optional[int] = ..., tool_calls: _Optional[int] = ...) -> None: ...

class ProviderData(_message.Message):
    __slots__ = ("provider", "data")
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    provider: str
    data: bytes
    def __init__(self, provider: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class ToolCall(_message.Message):
    __slots__ = ("id", "name", "arguments_json", "provider_data")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_DATA_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    arguments_json: str
    provider_data: ProviderData
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., arguments_json: _Optional[str] = ..., provider_data: _Optional[_Union[ProviderData, _Mapping]] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content", "tool_calls", "tool_call_id", "provider_data")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_DATA_FIELD_NUMBER: _ClassVar[int]
    role: Role
    content: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCall]
    tool_call_id: str
    provider_data: ProviderData
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., content: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCall, _Mapping]]] = ..., tool_call_id: _Optional[str] = ..., provider_data: _Optional[_Union[ProviderData, _Mapping]] = ...) -> None: ...

class ToolSpec(_message.Message):
    __slots__ = ("name", "description", "arguments_schema_json", "idempotent")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    arguments_schema_json: str
    idempotent: bool
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., arguments_schema_json: _Optional[str] = ..., idempotent: _Optional[bool] = ...) -> None: ...
