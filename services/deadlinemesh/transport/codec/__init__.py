"""The vocabulary on the wire: each `…_to_wire` stands beside its `…_from_wire`.

phases.py     durations, phases, a hop's report of its time
messages.py   conversations and tool calls
turns.py      a model turn's request and events
tools.py      a tool's description, the events of a tool call
"""

from deadlinemesh.transport.codec.messages import (
    add_message,
    add_messages,
    message_from_wire,
    messages_from_wire,
    tool_call_from_wire,
    tool_call_to_wire,
)
from deadlinemesh.transport.codec.phases import (
    microseconds,
    phase_from_wire,
    phase_to_wire,
    phases_to_wire,
    spend_from_wire,
    spend_to_wire,
)
from deadlinemesh.transport.codec.tools import (
    tool_event_from_wire,
    tool_event_to_wire,
    tool_spec_from_wire,
    tool_spec_to_wire,
)
from deadlinemesh.transport.codec.turns import (
    turn_event_from_wire,
    turn_event_to_wire,
    turn_from_wire,
    turn_to_wire,
)

__all__ = [
    "add_message",
    "add_messages",
    "message_from_wire",
    "messages_from_wire",
    "microseconds",
    "phase_from_wire",
    "phase_to_wire",
    "phases_to_wire",
    "spend_from_wire",
    "spend_to_wire",
    "tool_call_from_wire",
    "tool_call_to_wire",
    "tool_event_from_wire",
    "tool_event_to_wire",
    "tool_spec_from_wire",
    "tool_spec_to_wire",
    "turn_event_from_wire",
    "turn_event_to_wire",
    "turn_from_wire",
    "turn_to_wire",
]
