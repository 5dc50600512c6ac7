"""Deadline Mesh: a gRPC mesh that runs AI agents for many tenants, each inside one exact deadline.

Read from the top down; imports go up only:

    errors          the one error tree
    deadline        clocks, contexts, scopes that end on time; `lowlevel` for transports
    admission       fair queues, limits, leases
    vocabulary      messages, turns, tools, phases: what the services say to each other
    policy          the policy file: tiers, tenants, models, tools
    identity        peers, callers, grants
    telemetry       what happened, as events; sinks for logs, metrics and spans
    transport       gRPC: codec, channel decorator, interceptor, status, server
    llm_proxy       streams from model providers
    tool_runner     runs tools
    orchestrator    grants budgets, runs the agent loop, answers in time
    client          the Python client
    hosting         puts a service together and runs it
    local           the mesh on one machine
    testing         virtual time, the in-memory mesh
    demo_world      the upstreams of the demo
    views           runs in a terminal
    demo            the incident
    cli             the command `dmesh`
    v1              generated stubs, never edited

`deadline` and `transport` are made to be embedded in services of your own.
"""
