"""The llm-proxy: streams from model providers, owns the model slots, and stops a model in mid-token.

    servicer.py    messages to the vocabulary and back
    coalescing.py  text deltas that arrive during a write, joined
    service.py     one turn: slot, provider, ledger
    checking.py    the checks of a turn's request
    providers/     the ways to reach models

The scope of the call ends the work. Closing a provider's stream closes its connection.
"""
