"""What several kinds of tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from tests.support.up import Up, up

# How long an example takes, or making it, says only how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Plain clients use what these name, even to this machine; tests of proxies set their own.
for variable in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[variable]


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`dmesh up` as a real process: the embedded policy, its demo world, fresh keys. Do not break it, it is shared."""
    with up(tmp_path_factory.mktemp("mesh")) as running:
        yield running
        assert running.stop() == 0
