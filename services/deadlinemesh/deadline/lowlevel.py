"""The parts of `deadline` for transports and hosts.

They make scopes own tasks, threads and processes, and measure the lateness of the event loop.
Services that embed deadlines do not need this module.
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
