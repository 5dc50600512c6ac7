"""The ways to run tools.

python.py          an async function, on the event loop
process.py         a plain function, in a worker process
http.py            a request to an HTTP API
  url.py             its URL, from a template
  connections.py     connections to each origin
cancelled_once.py  a task that is cancelled once, then left to end
"""
