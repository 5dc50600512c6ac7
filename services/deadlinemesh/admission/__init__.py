"""Admission to everything scarce: a limit, fair shares, and refusal of work that cannot finish.

    bulkhead.py       slots held by leases; waiting, and refusal
    queue.py          the fair queue: bands, then tenants by weight, then deadlines
    times.py          recent service times, learned
    loop_catch_up.py  a pause in which the event loop sees new arrivals
    quota.py          rate and concurrency of each caller's calls
    budget.py         bytes held, by each and by all
    throttle.py       local refusal of calls that would be refused remotely
    in_use.py         resources that are closed when their last user has left

asyncio only. It knows neither what is admitted nor any configured service time.
"""

from deadlinemesh.admission.budget import Budget, Held
from deadlinemesh.admission.bulkhead import Bulkhead, Lease, Wait, WaitEnd
from deadlinemesh.admission.in_use import InUse
from deadlinemesh.admission.queue import Share
from deadlinemesh.admission.quota import Excess, Quota, Quotas
from deadlinemesh.admission.throttle import Throttle
from deadlinemesh.admission.times import RecentTimes

__all__ = [
    "Budget",
    "Bulkhead",
    "Excess",
    "Held",
    "InUse",
    "Lease",
    "Quota",
    "Quotas",
    "RecentTimes",
    "Share",
    "Throttle",
    "Wait",
    "WaitEnd",
]
