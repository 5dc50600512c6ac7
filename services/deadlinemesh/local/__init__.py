"""The mesh on one machine. Each service is a separate process.

machine.py       starts and ends the whole mesh
supervisor.py    starts several programs, restarts and ends them
process.py       a child process
adopted.py       ends processes that a dead service has left
tied.py          runs a module in a process that ends with its starter
folder.py        a temporary folder, removed even after a kill
state.py         a file that describes the running mesh, for other commands
tailoring.py     fits a policy to this machine
model_server.py  a real small model
"""
