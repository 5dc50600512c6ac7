"""For transports and hosts: how scopes own tasks, threads and processes, and how late the event loop is.

Services that embed deadlines need none of this.
"""

from deadlinemesh.deadline.context import HERE
from deadlinemesh.deadline.lag import Lag, LagWatch
from deadlinemesh.deadline.processes import end_processes, inherit_processes, own_processes
from deadlinemesh.deadline.scope import REPORT_ORPHAN_AFTER, current_scope, outside_any_scope, own_tasks
from deadlinemesh.deadline.threads import Threads, own_threads

__all__ = [
    "HERE",
    "REPORT_ORPHAN_AFTER",
    "Lag",
    "LagWatch",
    "Threads",
    "current_scope",
    "end_processes",
    "inherit_processes",
    "outside_any_scope",
    "own_processes",
    "own_tasks",
    "own_threads",
]
