"""What the environment says of a service's server."""

from __future__ import annotations

import pytest

from deadlinemesh.hosting.settings import CLIENT_STREAMS, MESH_STREAMS, HopSettings

BUDGET_S = 3600.0


def settings(**values: object) -> HopSettings:
    return HopSettings(mesh_token="t", **values)  # type: ignore[arg-type]


def test_old_connection_outlives_the_longest_budget() -> None:
    server = settings(connection_age_seconds=60, drain_seconds=10).server("orchestrator", 1024, BUDGET_S)
    assert server.connection_grace > BUDGET_S


def test_old_connection_outlives_the_drain() -> None:
    assert settings(drain_seconds=7200).server("edge", 1024, BUDGET_S).connection_grace > 7200


@pytest.mark.parametrize(
    ("hop", "pool", "streams"),
    [
        ("edge", "", CLIENT_STREAMS),
        ("orchestrator", "", CLIENT_STREAMS),
        ("orchestrator", "shared", MESH_STREAMS),
        ("llm-proxy", "", MESH_STREAMS),
        ("tool-runner", "", MESH_STREAMS),
    ],
)
def test_hops_share_one_connection_clients_do_not(hop: str, pool: str, streams: int) -> None:
    assert settings(pool=pool).server(hop, 1024, BUDGET_S).streams == streams


def test_number_of_streams_can_be_set() -> None:
    assert settings(streams=7).server("edge", 1024, BUDGET_S).streams == 7
