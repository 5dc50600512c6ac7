"""The upstreams of the article, over real HTTP: slow services for a mesh to call.

    GET  /crm/customers/{customer}      tenant A's CRM: fast, about 40 ms
    POST /vector/search                 tenant A's vector database: about 80 ms;
                                        {"query": ..., "top_k": ...}
    GET  /market/quotes/{symbol}        tenant B's financial data provider: median 1.2 s, p99 12 s
    GET  /portfolio/{account}/report    tenant C's internal service: honours the deadline
                                        headers, calls the five parts
    GET  /portfolio/parts/{part}/{account}
                                        the five parts: positions, cash, risk, fees, news
    GET  /world/stats                   calls started, ended and abandoned, for each endpoint

A call is stopped when its caller disconnects. Answers and latencies depend only on the seed and the
request.

    python -m deadlinemesh.demo_world --port 0

Its modules:

    world.py       the endpoints, and the counts of their calls
    data.py        made-up answers
    latency.py     lognormal latencies
    disconnect.py  the end of a call whose caller has left
    server.py      the world behind a socket
"""

from deadlinemesh.demo_world.latency import LATENCIES, Latency
from deadlinemesh.demo_world.server import serving
from deadlinemesh.demo_world.world import Calls, DemoWorld

__all__ = ["LATENCIES", "Calls", "DemoWorld", "Latency", "serving"]
