"""A service on tcp with keys."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import mla_client
from mla_client import Client, Entry
from service import BIN, Service


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "others"):
        subprocess.run([BIN / "mla-keys", folder / name], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def guarded(keys: Path) -> Iterator[Service]:
    with Service("--curve-keys", str(keys / "ours"), endpoint="tcp://127.0.0.1:*") as service:
        yield service


def test_with_the_key(guarded: Service, keys: Path) -> None:
    for shared in (True, False):
        with Client(
            guarded.endpoint, timeout=20, curve_keys=keys / "ours", shared_memory=shared
        ) as client:
            x = np.zeros((3, 256), np.float32)
            assert client.run_layer([Entry(1, 0, 3)], 0, x).shape == (3, 256)


def test_with_another_services_key(guarded: Service, keys: Path) -> None:
    with pytest.raises(mla_client.AccessDenied, match="refused"):
        Client(guarded.endpoint, timeout=20, curve_keys=keys / "others")


def test_without_a_key(guarded: Service) -> None:
    with pytest.raises(mla_client.AccessDenied):
        Client(guarded.endpoint, timeout=20)


def test_a_key_that_is_not_known(guarded: Service, keys: Path, tmp_path: Path) -> None:
    """Of a client that has the service's public key, but is on no list."""
    for name, source in (("client.key", "others"), ("server.pub", "ours")):
        (tmp_path / name).write_text((keys / source / name).read_text())
        (tmp_path / name).chmod(0o600)
    with pytest.raises(mla_client.AccessDenied):
        Client(guarded.endpoint, timeout=20, curve_keys=tmp_path)
