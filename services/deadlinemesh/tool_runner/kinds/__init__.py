"""The kinds of tools, one module each, with their helpers.

python.py            an async function, on the event loop
process.py           a plain function, in a worker process
http.py              a request to an HTTP API
  url.py               its URL, from a template
  connections.py       bounded connections to each origin
  cancelled_once.py    an exchange that is cancelled once, then left time to close
"""
