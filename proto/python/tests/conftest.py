"""What the tests share: services, which take a second to start, and clients of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import mla_client
from golden import Case
from service import Service

# So little of everything that each of it can run out.
SMALL = (
    "--kv-blocks", "64", "--context-max", "1024", "--steps-open-max", "4", "--sequences-max", "40",
    "--step-tokens-max", "600", "--runs-queued-max", "16", "--prefill-tokens-max", "96",
)  # fmt: skip


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with Service(*SMALL) as running:
        yield running


@pytest.fixture(params=["shared", "inline"])
def client(service: Service, request: pytest.FixtureRequest) -> Iterator[mla_client.Client]:
    """Once with shared memory and once without."""
    shared = request.param == "shared"
    with mla_client.Client(service.endpoint, timeout=20, shared_memory=shared) as client:
        assert client.shared == shared
        yield client
    # Nothing of it may be left to the next one.


@pytest.fixture
def one(service: Service) -> Iterator[mla_client.Client]:
    """A client for what has nothing to do with payloads."""
    with mla_client.Client(service.endpoint, timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def case() -> Case:
    return Case("v3-tiny")
