"""Real processes, and whatever can happen to them: what holds in simulated worlds must hold here as well.

toxics.py      Toxiproxy, which stands between every pair, and the faults that it makes
provider.py    the world outside: a model provider and an HTTP tool that do as each run's script says, and note what they did
tools.py       tools of the tool-runner, some of which do not stop
processes.py   the services as processes that are killed, stopped, continued and started again, and what they report
noise.py       for how long the machine let nobody run
mesh.py        the mesh of all these, its clients, and the scenarios that are played in it
invariants.py  what must be true of every scenario, seen from outside
"""
