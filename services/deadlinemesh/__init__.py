"""Deadline Mesh: a gRPC mesh that runs AI agents for many tenants, each inside one exact deadline.

Read from the bottom up; imports go one way only:

    errors          the one error tree: what can go wrong, in the mesh's own words
    deadline        clocks, the DeadlineContext, scopes that end on time            standard library only
    policy          the policy file: tiers, tenants, models, tools
    telemetry       what happened, as events; sinks for logs and files; OpenTelemetry, corrected
    transport       the wire: codec, channel decorator, inbound interceptor, status mapping, server lifecycle
    llm_proxy       the service that streams from model providers
    tool_runner     the service that runs tools
    orchestrator    the edge: grants budgets, runs the agent loop, answers in time
    client          the Python client
    cli             dmesh
    testing         virtual time, the in-memory mesh, the demo world
    v1              generated stubs, never edited

`deadline` and `transport` are made to be embedded in services of your own.
"""
