"""The made-up answers of the world's endpoints: plausible, and always the same for the same
request.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from typing import Any

__all__ = ["PARTS", "customer", "part", "quote", "search"]

PARTS = ("positions", "cash", "risk", "fees", "news")
"""The parts of a portfolio report."""

_COMPANIES = (
    "Halden Logistics",
    "Brightwater Foods",
    "Norrby Instruments",
    "Castellan Insurance",
    "Ostrava Steelworks",
)
_PEOPLE = ("Amara Okafor", "Jonas Lindqvist", "Mei-Ling Chen", "Priya Raman", "Tomás Herrera", "Ingrid Solberg")
_SEGMENTS = ("start-up", "mid-market", "enterprise", "public sector")
_SYMBOLS = ("ACME", "BRWF", "CSTI", "HLDN", "NRBY", "OSTR", "QNTM", "VLTA")
_HEADLINES = (
    "{} raises its outlook for the year",
    "{} opens a plant in Gdańsk",
    "Regulator clears the merger of {} with a rival",
    "{} recalls a product line after a fault in a sensor",
    "Analysts disagree on the margin of {}",
)

_DOCUMENTS = {
    "refunds": "Refund policy: a customer may return goods within 30 days and is paid back within five days.",
    "shipping": "Shipping times: orders leave the warehouse the same day and arrive within three days in Europe.",
    "sla": "Service levels: enterprise customers get an answer within one hour and an uptime of 99.95 percent.",
    "onboarding": "Onboarding guide: invite your team, connect the data warehouse, then run the first report.",
    "invoices": "Invoices are sent on the first day of the month; late payment adds two percent interest.",
    "security": "Security overview: data is encrypted at rest and in transit, keys are rotated every 90 days.",
    "retention": "Data retention: logs are kept for 30 days, backups for one year, deleted accounts are purged.",
    "limits": "Rate limits: the free plan allows 60 requests per minute, the professional plan 600.",
    "outage": "Postmortem: a slow third-party provider held all connections and the timeout of other tenants passed.",
    "pricing": "Pricing: the professional plan costs 49 per seat and month, enterprise contracts are yearly.",
    "export": "Export: reports can be downloaded as CSV or delivered to object storage every night.",
    "support": "Support hours: weekdays from 8 to 18 Central European Time, critical incidents at any time.",
}


def customer(customer_id: str, seed: int) -> dict[str, Any]:
    """A customer as a CRM describes it."""
    draw = random.Random(f"{seed}|customer|{customer_id}")
    return {
        "id": customer_id,
        "name": draw.choice(_COMPANIES),
        "contact": draw.choice(_PEOPLE),
        "segment": draw.choice(_SEGMENTS),
        "account_manager": draw.choice(_PEOPLE),
        "account": f"PF-{draw.randrange(10_000, 99_999)}",
        "since": f"{draw.randint(2018, 2025)}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}",
        "open_tickets": draw.randint(0, 4),
        "yearly_revenue_eur": draw.randrange(4_000, 480_000, 100),
    }


def search(query: str, top_k: int) -> dict[str, Any]:
    """The `top_k` documents most similar to `query`, by the cosine of their word counts."""
    wanted = _words(query)
    scores = ((_cosine(wanted, _words(text)), name) for name, text in _DOCUMENTS.items())
    best = sorted(((score, name) for score, name in scores if score > 0), key=lambda hit: (-hit[0], hit[1]))[:top_k]
    matches = [{"id": name, "score": round(score, 4), "text": _DOCUMENTS[name]} for score, name in best]
    return {"query": query, "matches": matches}


def quote(symbol: str, seed: int) -> dict[str, Any]:
    """A stock quote."""
    draw = random.Random(f"{seed}|quote|{symbol}")
    close = round(draw.lognormvariate(4.2, 0.8), 2)
    change = round(draw.gauss(0.0, 1.4), 2)
    return {
        "symbol": symbol,
        "currency": "EUR",
        "price": round(close * (1 + change / 100), 2),
        "previous_close": close,
        "change_percent": change,
        "volume": draw.randrange(20_000, 9_000_000, 100),
        "time": f"2026-11-24T{draw.randint(9, 16):02d}:{draw.randint(0, 59):02d}:{draw.randint(0, 59):02d}Z",
    }


def part(name: str, account: str, seed: int) -> Any:
    """One part of a portfolio report. Raises KeyError for a name that is not in PARTS."""
    draw = random.Random(f"{seed}|{name}|{account}")
    held = random.Random(f"{seed}|held|{account}").sample(_SYMBOLS, 4)
    match name:
        case "positions":
            holdings = [
                {"symbol": s, "quantity": draw.randrange(10, 900, 5), "price_eur": quote(s, seed)["price"]}
                for s in held
            ]
            valuation = round(sum(holding["quantity"] * holding["price_eur"] for holding in holdings), 2)
            year = round(draw.gauss(5, 9), 1)
            return {"holdings": holdings, "valuation_eur": valuation, "performance_one_year_percent": year}
        case "cash":
            return {"eur": round(draw.uniform(500, 60_000), 2), "usd": round(draw.uniform(0, 20_000), 2)}
        case "risk":
            return {
                "volatility_percent": round(draw.uniform(6, 28), 1),
                "value_at_risk_eur": draw.randrange(900, 42_000),
            }
        case "fees":
            return {
                "management_percent": draw.choice([0.35, 0.5, 0.75]),
                "paid_this_year_eur": draw.randrange(80, 2_400),
            }
        case "news":
            return [{"symbol": s, "headline": draw.choice(_HEADLINES).format(s)} for s in held[:3]]
    raise KeyError(name)


def _words(text: str) -> Counter[str]:
    return Counter(word.rstrip("s") for word in re.findall(r"[a-z0-9]+", text.lower()) if len(word) > 2)


def _cosine(a: Counter[str], b: Counter[str]) -> float:
    shared = sum(count * b[word] for word, count in a.items())
    return shared / (math.hypot(*a.values()) * math.hypot(*b.values())) if shared else 0.0
