"""The llm-proxy: streams from model providers, owns the model slots, and stops a model mid-token.

    servicer.py    messages to the vocabulary and back
    coalescing.py  joins text deltas that arrive during a write
    service.py     one turn: slot, provider, ledger
    checking.py    the checks of a turn's request
    providers/     the ways to reach models

The scope of the call ends the work: it closes the provider's stream, and so the connection.
"""
