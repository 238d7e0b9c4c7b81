"""The bench, and that it tells what mla-bench tells."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mla_client import bench
from service import BIN, Service


def keys(value: Any, path: str = "") -> set[str]:
    """All keys, with those that lead to them."""
    if isinstance(value, list):
        return keys(value[0], path)
    if not isinstance(value, dict):
        return {path}
    return {key for name, inner in value.items() for key in keys(inner, f"{path}.{name}")}


@pytest.mark.parametrize("payload", ["auto", "inline"])
@pytest.mark.parametrize("arrays", ["buffers", "plain"])
def test_same_numbers(
    service: Service, tmp_path: Path, payload: str, arrays: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--endpoint", service.endpoint, "--rows", "4", "--context", "70", "--in-flight", "1,3",
        "--repeat", "50", "--warm-up", "0", "--opens", "5", "--payload", payload, "--json",
    ]  # fmt: skip
    ours, theirs = tmp_path / "python.json", tmp_path / "c.json"
    assert bench.main([*options, str(ours), "--arrays", arrays]) == 0
    shown = capsys.readouterr().out
    subprocess.run([BIN / "mla-bench", "run", *options, theirs], check=True, capture_output=True)
    results, wanted = json.loads(ours.read_text()), json.loads(theirs.read_text())
    # Whose processor time it is can't be told of the others' processes.
    missing = {".rounds.coordinator_cores", ".rounds.workers_cores"}
    assert keys(wanted) - missing <= keys(results)
    for key in ("bench", "rows", "context", "layers", "dtype", "payload", "groups", "ranks"):
        assert results[key] == wanted[key]
    for one, in_flight in zip(results["rounds"], (1, 3), strict=True):
        assert one["in_flight"] == in_flight
        assert one["parts"]["runs"] == 50
        parts = one["parts"]
        assert parts["total_us"]["p99"] >= parts["total_us"]["median"] > 0
        assert parts["total_us"]["median"] > parts["compute_us"]["median"] > 0
        assert f"{one['runs_per_s']:.1f}" in shown


def test_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--endpoint", "ipc:///x", "--in-flight", "0"]):
        with pytest.raises(SystemExit) as caught:
            bench.main(options)
        assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err
