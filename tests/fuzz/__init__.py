"""Coverage-guided fuzzers of all that reads what others send. README.md says how they are run.

targets/      one module each: `target(data)` reads `data` as the mesh would, and asserts what must hold of the result
seeds/        inputs that a target's corpus begins with, by target
found/        inputs that failed once, by target
reading.py    how targets make headers, JSON lines and event loops of bytes
mutating.py   mutations that keep JSON lines what they are
loop.py       one target under libFuzzer
__main__.py   all of them, for some seconds each: `make fuzz`
"""
