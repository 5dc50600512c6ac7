"""Tools for tests of the mesh, and of services that embed it.

virtual_time.py  an event loop that jumps from timer to timer: a 300 s run takes milliseconds
memory.py        a channel and a server without sockets, for real stubs and real servicers
mesh.py          `MemoryMesh`: all services of a policy, wired together in memory
"""
