"""What tests of the mesh, and of services embedded in it, need.

virtual_time.py  an event loop whose time jumps from timer to timer: a 300 s run takes milliseconds
memory.py        a channel and a server without sockets, for real stubs and real servicers
mesh.py          the three services wired together in memory

"""
