"""Token counts where a provider gives none."""

__all__ = ["estimated_tokens"]

_CHARACTERS_PER_TOKEN = 4


def estimated_tokens(text: str) -> int:
    """The usual estimate: one token for four characters, rounded up."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)
