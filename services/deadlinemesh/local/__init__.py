"""The mesh on one machine, each service a process of its own.

machine.py       the whole mesh
supervisor.py    several processes: ready, restarted, drained
process.py       a child process
adopted.py       processes that a dead service has left behind
tied.py          a module as a process that ends with its starter
folder.py        a temporary folder, removed even after a kill
state.py         the running mesh, told to other commands in a file
tailoring.py     a policy made to fit this machine
model_server.py  a real small model
"""
