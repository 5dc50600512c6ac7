"""Token estimates, for providers that send no counts."""

__all__ = ["estimated_tokens"]

_CHARACTERS_PER_TOKEN = 4


def estimated_tokens(text: str) -> int:
    """The estimated tokens of `text`: one for four characters, rounded up."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)
