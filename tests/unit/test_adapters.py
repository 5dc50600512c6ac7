"""What the loop is told of what its upstreams say."""

from __future__ import annotations

import pytest

from deadlinemesh.orchestrator.adapters import _model_event
from deadlinemesh.orchestrator.ports import TurnFinished
from deadlinemesh.v1 import llm_proxy_pb2


@pytest.mark.parametrize(
    ("reason", "truncated"),
    [
        (llm_proxy_pb2.FINISH_REASON_STOP, False),
        (llm_proxy_pb2.FINISH_REASON_TOOL_CALLS, False),
        (llm_proxy_pb2.FINISH_REASON_LENGTH, True),
        (llm_proxy_pb2.FINISH_REASON_CONTENT_FILTER, True),
    ],
)
def test_an_answer_is_whole_unless_it_reached_its_limit_or_was_withheld(
    reason: llm_proxy_pb2.FinishReason, truncated: bool
) -> None:
    response = llm_proxy_pb2.GenerateResponse(finished=llm_proxy_pb2.GenerateFinished(reason=reason))
    assert _model_event(response) == TurnFinished(0, 0, truncated)
