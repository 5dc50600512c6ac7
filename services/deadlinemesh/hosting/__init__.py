"""Builds each service from its parts, and runs it.

services.py       the services, each built from its parts; also for the in-memory mesh of tests
assembly.py       one service of a process, from its settings and its policy
settings.py       the settings read from environment variables
serve.py          runs one service in this process
event_loop.py     the event loop: uvloop's or asyncio's
interpreter.py    garbage collection and memory, set up for deadlines
policy_status.py  a file with the policy in force
private_files.py  files that only their owner may read
"""
