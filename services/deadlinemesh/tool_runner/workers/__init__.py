"""Processes that run blocking tools. A process is the only thing that can always be stopped.

    pool.py          `Workers`: how many workers there are, their tenants, reuse, and their end
    worker.py        one worker as the tool-runner sees it: sends a call, receives its reply
    worker_main.py   the program of a worker
    keeper.py        the tool-runner's side of the keeper, the process that starts and ends workers
    keeper_main.py   the program of the keeper (fork, kill, reap), and the protocol between the two
    confinement.py   limits of a worker: user, capabilities, Landlock, private memory
    folders.py       the workers' private folders, also removes those of dead tool-runners
    marks.py         marks that find all descendants of a dead process
    inherited.py     processes left by dead workers, attributed to them
    frames.py        the message format on a worker's socket

The tool-runner itself never forks, because gRPC's threads would not survive it. It starts one small
process, the keeper. The keeper has no threads and has imported every module that workers need. So a
fork of it is a worker within a millisecond, against a tenth of a second for a new interpreter. This
makes it cheap to replace a worker that was killed, or that belonged to another tenant.

The keeper also inherits every process that its workers start. If a tool forks, and the new process
leaves the worker's process group, the keeper becomes its parent when the worker dies. The keeper
has no children other than workers, so it kills every process that it inherits. If the tool-runner
dies by any signal, the keeper sees their socket close. It then kills everything, including
processes started by async tools, and exits.
"""
