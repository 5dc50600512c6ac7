"""Admission to scarce resources: limits, fair shares, and refusal of work that cannot finish.

    bulkhead.py       `Bulkhead`: a fixed number of slots, with waiting and refusal
    queue.py          the fair queue: by band, then by tenant, then by deadline
    times.py          recent service times
    loop_catch_up.py  pauses, so that the event loop sees new arrivals
    quota.py          `Quotas`: rate and concurrency of each caller's calls
    budget.py         `Budget`: bytes held, per tenant and in all
    throttle.py       `Throttle`: local refusal of calls that the server would refuse
    in_use.py         `InUse`: a count of a resource's users, to close it after the last one

It uses asyncio, `deadlinemesh.deadline` and `deadlinemesh.errors` only. It does not know the kind
of resource, and it learns service times by itself: none is configured.
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
