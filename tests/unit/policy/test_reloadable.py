"""Settings that a reload cannot change."""

from __future__ import annotations

import pytest

from deadlinemesh.policy import Policy, default_policy, refuse_what_stands


def with_message_bytes(size: int) -> Policy:
    policy = default_policy()
    return policy.model_copy(update={"limits": policy.limits.model_copy(update={"message_bytes": size})})


@pytest.mark.parametrize("size", [1024 * 1024, 8 * 1024 * 1024])
def test_size_of_messages_needs_a_restart(size: int) -> None:
    with pytest.raises(ValueError, match=f"message_bytes: is 4194304 for as long .* restart them for {size}"):
        refuse_what_stands(default_policy(), with_message_bytes(size))


def test_same_size_of_messages_is_reloadable() -> None:
    refuse_what_stands(default_policy(), default_policy())
