"""The providers of models. Each streams the turns of one model.

    scripted.py     the embedded default: deterministic, without key or network
      intent.py       the tool calls that a prompt asks for
      arguments.py    the arguments of these calls
      forms.py        the forms of argument values
      names.py        names in small letters
      words.py        the comparison of words
      wording.py      the texts of its answers
    openai.py       any endpoint that speaks OpenAI's chat completions
      deltas.py       assembles the chunks of its stream
      choosing.py     tools for models that ignore `tools`
      fitting.py      histories for models with a small context
    tokens.py      token estimates, if a provider sends no counts
    proxies.py     the proxy that the environment names for an endpoint
    unusable.py    replaces a model without a usable key or proxy

A provider knows no deadline. Its stream is closed when the deadline passes.
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
    """Streams the turns of one model."""

    def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        """Stream one turn while it is written. The last event is TurnFinished, without `spend`.

        `turn.max_output_tokens` must be positive. Closing the generator, or cancelling its task,
        closes the connection before it returns, so that the provider stops too. Raises Shed if the
        provider refuses because of load, and UpstreamFailed for its other failures.
        """
        ...

    async def aclose(self) -> None:
        """Close idle connections. No stream may be open."""
        ...


def provider_of(model: ModelPolicy) -> Provider:
    """The provider of `model`.

    Raises Unusable if the environment has no usable key or proxy for it.
    """
    if isinstance(model, ScriptedModel):
        from deadlinemesh.llm_proxy.providers.scripted import ScriptedProvider

        return ScriptedProvider(model)
    # Importing the SDK takes most of a second. A mesh with only scripted models need not import it.
    from deadlinemesh.llm_proxy.providers.openai import OpenAIProvider

    return OpenAIProvider.from_environment(model)


def providers_of(models: Mapping[str, ModelPolicy]) -> dict[str, Provider]:
    """The providers of all models, by name.

    A model without a usable key or proxy is logged and refuses its turns. The others are not
    affected. Raises Unusable if no model is usable.
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
