"""The llm-proxy: streams from model providers, owns the model slots, and stops the model in mid-token.

    conversation.py     messages, tools and the events of a turn; what makes a history valid
    service.py          one turn: slot, provider, ledger
    providers/          who writes the answer: `scripted` (embedded), `openai` (any endpoint that speaks its wire)
    local.py            a real small model on this machine, as an endpoint for `openai`
    servicer.py         between the wire's messages and the above; the only one that sees v1

Nothing here measures out time of its own: the scope of the call ends the work, and closing a provider's stream
closes its connection.
"""
