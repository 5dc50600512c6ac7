"""Who may begin: one primitive for everything of which there is not enough.

    times      what recent work took: learned, and forgotten when it changes
    line       who is next: bands, then tenants by weight, then deadlines
    bulkhead   slots, held by leases; waits, and refuses what cannot finish
    breath     lets the event loop see who came, between pieces of work that hold it up
    quota      how fast, and how many at once, each caller may make calls
    budget     bytes that all, and each, may hold at once
    throttle   refuses at home what the other side would refuse anyway

Nothing here knows what is admitted, or a service time that somebody configured. asyncio only.
"""

from deadlinemesh.admission.budget import Budget, Held
from deadlinemesh.admission.bulkhead import Bulkhead, Lease, Wait, WaitEnd
from deadlinemesh.admission.in_use import InUse
from deadlinemesh.admission.line import Share
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
