"""Thousands of runs through the mesh in memory, in virtual time, under whatever hypothesis thinks of.

scenario.py    what happens in one world: tenants, clients, models, tools and all that goes wrong; an integer names it
upstreams.py   the models and tools that play their parts, and write down when they were at work and for whom
store.py       where the tool-runner keeps results; it does the same
workers.py     what stands for worker processes
world.py       plays a scenario; what was seen is a `Trace`
invariants.py  what must be true of every trace
explore.py     has hypothesis look for a scenario of which it is not, and make that smaller
__main__.py    `make simulate`: look further than CI does, or play one scenario again
"""
