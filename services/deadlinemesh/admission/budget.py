"""A limit on the bytes held at once, per tenant and in all.

There is no queue, because a waiting request already has its bytes in memory. A request that does
not fit is refused at once.

A tenant may hold more only while it has at most a certain multiple of the free bytes (the dynamic
threshold of Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998). A lone tenant gets
its full part. Two tenants get less each. Some bytes always stay free for the next tenant.
"""

from __future__ import annotations

import math
from collections import Counter
from types import TracebackType
from typing import Self

__all__ = ["Budget", "Held"]


class Budget:
    """At most `total` bytes. One tenant may hold the fraction `tenant_part` of them.

    >>> budget = Budget(100, tenant_part=0.5)
    >>> held = budget.take("acme", 50)
    >>> budget.take("acme", 1) is None, budget.held
    (True, 50)
    >>> held.release()
    >>> budget.held
    0
    """

    def __init__(self, total: int, tenant_part: float = 0.5) -> None:
        self._by_tenant: Counter[str] = Counter()
        self.held = 0
        """Bytes held now by all tenants."""
        self.resize(total, tenant_part)

    def resize(self, total: int, tenant_part: float = 0.5) -> None:
        """Set new bounds. Held bytes stay held. Raises ValueError for invalid bounds."""
        if total < 1 or not 0 < tenant_part <= 1:
            raise ValueError("a budget must be positive, and a tenant's part more than 0 and at most 1")
        self.total = total
        self._multiple = tenant_part / (1 - tenant_part) if tenant_part < 1 else math.inf
        self.most = int(total * tenant_part)
        """Bytes that one tenant may hold at most."""

    def held_by(self, tenant_id: str) -> int:
        """Bytes held now by the tenant."""
        return self._by_tenant.get(tenant_id, 0)

    def take(self, tenant_id: str, amount: int) -> Held | None:
        """Hold `amount` bytes for the tenant. None if they do not fit."""
        free = self.total - self.held - amount
        if free < 0 or self.held_by(tenant_id) + amount > self._multiple * free:
            return None
        held = Held(self, tenant_id)
        held._add(amount)
        return held


class Held:
    """Bytes held for one tenant until they are released."""

    __slots__ = ("_budget", "_tenant_id", "amount")

    def __init__(self, budget: Budget, tenant_id: str) -> None:
        self._budget = budget
        self._tenant_id = tenant_id
        self.amount = 0

    def grow(self, amount: int) -> bool:
        """Hold `amount` bytes more. False, and no change, if they do not fit.

        Only the tenant's part and the total count here. Work that has begun need not leave room for
        others, so it is not cut as soon as others come.
        """
        budget = self._budget
        if budget.held + amount > budget.total or budget.held_by(self._tenant_id) + amount > budget.most:
            return False
        self._add(amount)
        return True

    def _add(self, amount: int) -> None:
        self._budget.held += amount
        self._budget._by_tenant[self._tenant_id] += amount
        self.amount += amount

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give all bytes back. A second call does nothing."""
        self.shrink_to(0)

    def shrink_to(self, amount: int) -> None:
        """Give back all but `amount` bytes. Does nothing if fewer are held."""
        budget, amount = self._budget, max(0, self.amount - amount)
        self.amount -= amount
        budget.held -= amount
        budget._by_tenant[self._tenant_id] -= amount
        if not budget._by_tenant[self._tenant_id]:
            del budget._by_tenant[self._tenant_id]
