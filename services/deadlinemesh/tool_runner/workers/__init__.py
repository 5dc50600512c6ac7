"""Processes in which blocking tools run, because a process is the one thing that can always be stopped.

    pool.py          `Workers`: how many there are, whose they are, when one is used again, and that each of them ends
    worker.py        one worker as the tool-runner sees it: a call goes in, progress and an answer come out
    worker_main.py   what a worker does
    keeper.py        the tool-runner's hold on its keeper, which starts workers and ends them
    keeper_main.py   what the keeper does: fork, kill, reap; and what the two say to each other
    confinement.py   what a worker may not do: user, capabilities, Landlock, memory that others cannot read
    folders.py       the workers' private folders, also those that a killed tool-runner left
    marks.py         how all that a process has started is found when it is dead
    inherited.py     processes left by dead workers, attributed to them
    frames.py        how both ends of a worker's socket talk

The tool-runner itself never forks, since gRPC's threads would not survive it. It starts one small process, the keeper, which has no
threads and has imported what every worker needs, so that a fork of it is a worker within a millisecond, against a tenth of a second
for a new interpreter. A killed worker is cheap to replace, and so is one that belonged to another tenant.

The keeper is also the heir of all that its workers start. Whatever a tool forks, and wherever it hides from its process group, it
falls to the keeper when its worker dies, and the keeper has no other children than workers: what it inherits, it kills. When the
tool-runner dies, by whatever signal, the keeper sees their socket close, kills everything, also what async tools started, and goes.
"""
