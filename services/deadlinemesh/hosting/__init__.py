"""Puts a service together from its parts, and runs it.

assembly.py       each service from its parts; the only place where they meet
settings.py       the environment's variables
serve.py          one service in this process
event_loop.py     uvloop's event loop, or asyncio's
interpreter.py    garbage collection and memory, set up for deadlines
policy_status.py  the policy in force, told in a file
private_files.py  files that only their owner may read
"""
