"""What the tests share: services, which take a second to start, and clients of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import mla_client
from golden import Case
from service import Service, within

# So little of everything that each of it can run out, but time: nobody is to be lost because the
# machine has other work.
SMALL = (
    "--kv-blocks", "64", "--context-max", "1024", "--steps-open-max", "4", "--sequences-max", "40",
    "--step-tokens-max", "600", "--runs-queued-max", "16", "--prefill-tokens-max", "96",
    "--heartbeat-timeout-ms", "30000",
)  # fmt: skip


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with Service(*SMALL) as running:
        yield running


def alone(client: mla_client.Client) -> None:
    """The service has noticed that the clients before are gone."""

    def nobody_else() -> bool:
        stats = client.stats()
        return (stats.clients, stats.sequences, stats.steps_open) == (1, 0, 0)

    within(20, nobody_else)


@pytest.fixture(params=["shared", "inline"])
def client(service: Service, request: pytest.FixtureRequest) -> Iterator[mla_client.Client]:
    """Once with shared memory and once without."""
    shared = request.param == "shared"
    with mla_client.Client(service.endpoint, timeout=20, shared_memory=shared) as client:
        assert client.shared == shared
        alone(client)
        yield client


@pytest.fixture
def one(service: Service) -> Iterator[mla_client.Client]:
    """A client for what has nothing to do with payloads."""
    with mla_client.Client(service.endpoint, timeout=20) as client:
        alone(client)
        yield client


@pytest.fixture(scope="session")
def case() -> Case:
    return Case("v3-tiny")
