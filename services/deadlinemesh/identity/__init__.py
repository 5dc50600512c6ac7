"""Callers of a hop: peers of the mesh, tenants, and the grants of their runs.

    peers.py    hops of the mesh, known by the mesh token
    callers.py  tenants, known by an `Authenticator`; API keys are the first
    keys.py     API keys: creation and stored hashes
    grants.py   the edge's decision on one call, also on the wire

Gates ask these and decide; they know no gRPC. Import from the modules: `peers` alone is light enough
for the client library.
"""
