"""What `dmesh bench NAME` runs. Every benchmark measures plain grpc.aio beside the mesh, in the same run.

    registry.py   the benchmarks by name
    report.py     quantiles, bars, the form of a result
    process.py    child processes that say when they are ready
    relay.py      a process that serves plain and mesh relays, for drift and overhead
    drift.py      how far a deadline moves over six hops
    overhead.py   what the mesh's transport costs a call
    stop.py       how soon every hop is idle after the end
    stop_*.py     its parts: the clients and how they end, the mesh, the plain chain
    modes.py      the article's five ways to break a budget, naive and meshed
    modes_*.py    its parts: the load, the upstreams, the naive platform, the mesh, a slow store
    soak.py       whether anything is left of 100,000 streams that end before they are done
    soak_*.py     its parts: the streams, a service that tells what it holds
    dedicated.py  isolation's last part: a dedicated tenant while the shared pool spins

Naive code lives here, and in the demo, only.
"""
