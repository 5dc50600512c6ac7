"""Answers of runs that had no time to finish."""

from __future__ import annotations

from deadlinemesh.orchestrator.agent import Agent
from deadlinemesh.vocabulary import ToolStatus

__all__ = ["NO_ANSWER", "partial_answer"]

_NO_TIME = "There was no time left to finish"

NO_ANSWER = f"{_NO_TIME}, and nothing was found."
"""The answer of a run that had no time to begin."""

_EXCERPT = 500
"""Characters of each tool's result that are quoted."""


def partial_answer(agent: Agent, why: str = _NO_TIME) -> str:
    """The best answer of an unfinished run, never empty.

    It is the model's unfinished text, else the results of its tools, else the reason `why`.
    """
    if agent.text and not agent.turn_has_calls:
        return agent.text
    found = [
        f"- {call.name}: {_excerpt(result.content)}"
        for call, result in agent.finished_calls
        if result.status is ToolStatus.OK
    ]
    if found:
        return f"{why}. Found so far:\n" + "\n".join(found)
    waiting = ", ".join(call.name for call in agent.unfinished_calls)
    return f"{why}: {waiting} had not answered." if waiting else f"{why}, and nothing was found."


def _excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + " …"
