"""The checks of a turn's request before it reaches a provider."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from deadlinemesh.errors import InvalidRequest, Violation, shown
from deadlinemesh.vocabulary import LONGEST_ARGUMENTS, Message, ToolChoice, TurnRequest, history_violations

__all__ = ["check"]

_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check(turn: TurnRequest, found: Sequence[Violation] = (), *, longest_arguments: int = LONGEST_ARGUMENTS) -> None:
    """Raise InvalidRequest if `turn` has violations, or if some were `found` before.

    The error has all of them. A call's arguments may have `longest_arguments` characters.
    """
    violations = [*found, *_of_messages(turn.messages, longest_arguments), *_of_tools(turn)]
    if turn.max_output_tokens < 0:
        violations.append(Violation("max_output_tokens", "must be positive, or 0 for the model's own limit"))
    if violations:
        raise InvalidRequest(violations)


def _of_tools(turn: TurnRequest) -> list[Violation]:
    violations = []
    uses = Counter(tool.name for tool in turn.tools)
    for index, tool in enumerate(turn.tools):
        field = f"tools[{index}].name"
        if not _TOOL_NAME.fullmatch(tool.name):
            violations.append(Violation(field, "must be 1 to 64 letters, digits, underscores or hyphens"))
        elif uses[tool.name] > 1:
            violations.append(
                Violation(field, f"{shown(tool.name)} is offered {uses[tool.name]} times; names must be unique")
            )
    if turn.tool_choice is ToolChoice.REQUIRED and not turn.tools:
        violations.append(Violation("tool_choice", "tools are required, but `tools` is empty"))
    return violations


def _of_messages(messages: Sequence[Message], longest_arguments: int) -> list[Violation]:
    if not messages:
        return [Violation("messages", "at least one message is needed")]
    return history_violations(messages, "messages", longest_arguments)
