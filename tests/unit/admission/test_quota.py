"""Quotas bound the calls of each key. Budgets bound the bytes of each tenant, and of all."""

from __future__ import annotations

import pytest

from deadlinemesh.admission import Budget, Quota, Quotas
from deadlinemesh.admission.quota import MOST_OWED, RETRY_AFTER, Excess

FEW = Quota(per_second=10, burst=3, concurrent=1000)


def test_burst_is_granted_then_the_rate() -> None:
    quotas = Quotas()
    assert [quotas.begin("acme", FEW, 0.0) for _ in range(3)] == [None] * 3
    assert quotas.begin("acme", FEW, 0.0) == Excess("calls_per_second", 0.1)
    assert quotas.begin("acme", FEW, 0.05) == Excess("calls_per_second", 0.05)
    assert quotas.begin("acme", FEW, 0.1) is None
    taken = sum(quotas.begin("acme", FEW, 0.1 + tick / 1000) is None for tick in range(1, 10_001))
    assert taken == pytest.approx(100, abs=1)


def test_keys_have_separate_quotas() -> None:
    quotas = Quotas()
    for _ in range(1000):
        quotas.begin("acme", FEW, 0.0)
    assert quotas.begin("bolt", FEW, 0.0) is None


def test_running_calls_count_until_their_end() -> None:
    quotas, two = Quotas(), Quota(per_second=1000, burst=1000, concurrent=2)
    assert [quotas.begin("acme", two, 0.0) for _ in range(3)] == [None, None, Excess("concurrent_calls", RETRY_AFTER)]
    quotas.end("acme")
    assert quotas.begin("acme", two, 0.0) is None


def test_expensive_call_counts_as_several_up_to_a_bound() -> None:
    quotas = Quotas()
    assert quotas.begin("acme", FEW, 0.0) is None
    quotas.charge("acme", 12.0)
    excess = quotas.begin("acme", FEW, 0.5)
    assert excess is not None
    assert excess.retry_after == pytest.approx(0.6)
    assert quotas.begin("acme", FEW, 1.1) is None
    for _ in range(1000):
        quotas.charge("acme", 1000.0)
    assert quotas.begin("acme", FEW, 1.1 + MOST_OWED) is not None
    assert quotas.begin("acme", FEW, 1.3 + MOST_OWED) is None


def test_quota_may_change_during_calls() -> None:
    quotas = Quotas()
    for _ in range(3):
        quotas.begin("acme", FEW, 0.0)
    assert quotas.begin("acme", Quota(per_second=1, burst=1, concurrent=3), 5.0) is not None
    assert quotas.begin("acme", Quota(per_second=1, burst=1, concurrent=4), 5.0) is None


def test_quiet_keys_are_forgotten() -> None:
    quotas = Quotas()
    quotas.begin("at work", FEW, 0.0)
    for second in range(5000):
        quotas.begin(f"peer {second}", FEW, float(second))
        quotas.end(f"peer {second}")
    assert len(quotas) <= 1025
    quotas.end("at work")


def test_tenant_leaves_part_of_the_budget_to_the_next() -> None:
    budget = Budget(160, tenant_part=0.5)
    acme, bolt, cora = budget.take("acme", 80), budget.take("bolt", 40), budget.take("cora", 20)
    assert acme is not None
    assert bolt is not None
    assert cora is not None
    assert [budget.take(one, 11) for one in ("acme", "bolt", "cora", "new")] == [None] * 4
    assert budget.take("new", 10) is not None
    acme.release()
    acme.release()
    assert (budget.held, budget.held_by("acme"), budget.held_by("bolt")) == (70, 0, 40)


def test_held_bytes_may_grow_to_the_tenants_whole_part() -> None:
    budget = Budget(100, tenant_part=0.5)
    acme, bolt = budget.take("acme", 20), budget.take("bolt", 40)
    assert acme is not None
    assert bolt is not None
    assert bolt.grow(10)
    assert not bolt.grow(1)
    assert acme.grow(30)
    assert not acme.grow(1)
    with acme, bolt:
        assert budget.held == 100
    assert budget.held == 0


def test_smaller_budget_takes_nothing_back() -> None:
    budget = Budget(100, 1.0)
    held = budget.take("acme", 80)
    budget.resize(50, 1.0)
    assert budget.held == 80
    assert budget.take("bolt", 1) is None
    assert held is not None
    held.release()
    assert budget.take("bolt", 50) is not None


@pytest.mark.parametrize(("total", "part"), [(0, 0.5), (10, 0.0), (10, 1.1)])
def test_invalid_budget_is_refused(total: int, part: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Budget(total, part)
