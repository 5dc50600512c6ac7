"""Who writes the answer.

    scripted.py     the embedded default: deterministic, without key or network
      intent.py       which of the offered tools a prompt asks for
      arguments.py    what their arguments are
      forms.py        what values look like
      words.py        how words are compared
      wording.py      what is said
    openai.py       any endpoint that speaks OpenAI's chat completions
      choosing.py     tools for models that ignore `tools`
      fitting.py      histories for models with a small context

A provider knows no deadline: it is closed when there is none left.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from deadlinemesh.llm_proxy.conversation import Event, TurnRequest
from deadlinemesh.policy.model import ModelPolicy, ScriptedModel

__all__ = ["Provider", "provider_of"]


class Provider(Protocol):
    """Streams model turns."""

    def stream(self, turn: TurnRequest) -> AsyncGenerator[Event, None]:
        """One turn, as it is written; the last event is TurnEnded. `turn.max_output_tokens` is positive.

        Closing the generator, or cancelling the task that iterates it, closes the connection behind it before it
        returns, so that generation stops there too. Raises Shed where the provider refused for load, UpstreamFailed
        otherwise.
        """
        ...

    async def aclose(self) -> None:
        """Give back idle connections. No stream may be open."""
        ...


def provider_of(model: ModelPolicy) -> Provider:
    """The provider that policy names for `model`. Raises ValueError where its key is missing from the environment."""
    if isinstance(model, ScriptedModel):
        from deadlinemesh.llm_proxy.providers.scripted import ScriptedProvider

        return ScriptedProvider(model)
    # Importing the SDK takes most of a second, which a mesh of scripted models need not spend.
    from deadlinemesh.llm_proxy.providers.openai import OpenAIProvider

    return OpenAIProvider.from_environment(model)
