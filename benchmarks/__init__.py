"""The benchmarks of `dmesh bench NAME`. Each measures plain grpc.aio beside the mesh, in the same run.

    registry.py       the benchmarks by name
    report.py         quantiles, bars, the form of a result
    process.py        child processes that say when they are ready
    mesh.py           a mesh of real processes
    blocking_tool.py  a tool that blocks
    transport/        drift over six hops, and the cost of a call
    stop/             the time until every hop is idle after the end of runs
    goodput/          good answers under overload
    isolation/        a tenant beside an aggressor
    upstreams/        upstreams that fail, and models that hang
    modes/            five ways to break a budget, naive and meshed
    exact/            the time held back of a client's deadline
    soak/             the remains of 100,000 streams that end before they are done
    hostile/          attacks of strangers, and replies that nobody reads
    spinning/         a program that never yields

Naive code lives here, and in the demo, only.
"""
