"""Who writes the answer.

    scripted.py     the embedded default: deterministic, without key or network
      intent.py       which of the offered tools a prompt asks for
      arguments.py    what their arguments are
      forms.py        what values look like
      names.py        names in small letters
      words.py        how words are compared
      wording.py      what is said
    openai.py       any endpoint that speaks OpenAI's chat completions
      deltas.py       its chunks, put together
      choosing.py     tools for models that ignore `tools`
      fitting.py      histories for models with a small context
    tokens.py      token counts where a provider gives none
    proxies.py     the proxy that the environment names for an endpoint
    unusable.py    what stands in for a model whose key or proxy cannot be used

A provider knows no deadline: it is closed when there is none left.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from deadlinemesh.llm_proxy.providers.unusable import Unusable, UnusableProvider
from deadlinemesh.policy.model import ModelPolicy, ScriptedModel
from deadlinemesh.vocabulary import ModelEvent, TurnRequest

__all__ = ["Provider", "provider_of", "providers_of"]

_LOG = logging.getLogger("deadlinemesh.llm_proxy")


class Provider(Protocol):
    """Streams model turns."""

    def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        """One turn, as it is written; the last event is TurnFinished, without `spend`. `turn.max_output_tokens` is positive.

        Closing the generator, or cancelling the task that iterates it, closes the connection behind it before it
        returns, so that generation stops there too. Raises Shed where the provider refused for load, UpstreamFailed
        otherwise.
        """
        ...

    async def aclose(self) -> None:
        """Give back idle connections. No stream may be open."""
        ...


def provider_of(model: ModelPolicy) -> Provider:
    """The provider that policy names for `model`. Raises Unusable where the environment holds no key or proxy that serves."""
    if isinstance(model, ScriptedModel):
        from deadlinemesh.llm_proxy.providers.scripted import ScriptedProvider

        return ScriptedProvider(model)
    # Importing the SDK takes most of a second, which a mesh of scripted models need not spend.
    from deadlinemesh.llm_proxy.providers.openai import OpenAIProvider

    return OpenAIProvider.from_environment(model)


def providers_of(models: Mapping[str, ModelPolicy]) -> dict[str, Provider]:
    """The providers of all models, by name. One without a usable key or proxy is logged and refuses its turns: the others can do
    without.

    Raises Unusable where that leaves none.
    """
    found: dict[str, Provider] = {}
    unusable: dict[str, str] = {}
    for name, model in models.items():
        try:
            found[name] = provider_of(model)
        except Unusable as error:
            unusable[name] = f"model {name} cannot be used: {error}"
            found[name] = UnusableProvider(name)
    if len(unusable) == len(models):
        raise Unusable("; ".join(["no model can be used", *unusable.values()]))
    for why in unusable.values():
        _LOG.warning("%s", why)
    return found
