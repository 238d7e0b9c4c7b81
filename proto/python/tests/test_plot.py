"""Pictures of what the benches write."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service import BIN, ROOT, Service

pytest.importorskip("matplotlib", reason="no matplotlib here: pictures are NOT tested")

from mla_client import plot


def bench(service: Service, folder: Path, *arguments: str) -> dict[str, Any]:
    """What mla-bench says as JSON, drawn to results.png."""
    results = folder / "results.json"
    command = [str(BIN / "mla-bench"), *arguments, "--endpoint", service.endpoint]
    subprocess.run([*command, "--json", str(results)], check=True, timeout=120, capture_output=True)
    assert plot.main([str(results), "--note", "a test"]) == 0
    assert results.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    told: dict[str, Any] = json.loads(results.read_text())
    return told


def axes_of(told: dict[str, Any]) -> list[Any]:
    return list(plot.draw(told).axes)


def test_run(service: Service, tmp_path: Path) -> None:
    told = bench(service, tmp_path, "run", "--rows", "4", "--context", "9", "--in-flight", "2,1",
                 "--repeat", "40", "--warm-up", "0", "--opens", "3")  # fmt: skip
    hops, throughput = axes_of(told)
    names = [label.get_text() for label in hops.get_yticklabels()]
    assert names[0] == "client to coordinator"
    assert names[-1] == "all of it"
    assert [label.get_text() for label in throughput.get_xticklabels()] == ["1", "2"]
    rates = {one["in_flight"]: one["rows_per_s"] for one in told["rounds"]}
    assert [bar.get_height() for bar in throughput.patches] == [rates[1], rates[2]]


@pytest.mark.parametrize("lanes", [1, 2])
def test_replay(service: Service, tmp_path: Path, lanes: int) -> None:
    trace = str(ROOT / "tests/traces/chat-128.csv")
    told = bench(service, tmp_path, "replay", "--trace", trace, "--layers", "2", "--limit", "4",
                 "--concurrency", "2", "--prefill-budget", "96", "--lanes", str(lanes))  # fmt: skip
    timeline = told["timeline"]
    assert {len(column) for column in timeline.values()} == {told["steps"]}
    assert sum(one["output"] for one in told["requests"]) == told["total_output_tokens"]
    tokens = sum(timeline["decode_rows"]) + sum(timeline["prefill_rows"])
    # A prompt's last chunk makes the first token.
    assert tokens == told["total_input_tokens"] + told["total_output_tokens"] - told["completed"]
    assert max(timeline["ended_s"]) <= told["duration_s"]
    _, batch, occupancy = axes_of(told)
    # In all lanes together, which need not be at work at the same time.
    assert batch.lines[1].get_ydata().max() in range(3 - lanes, 3)
    peak = max(timeline["blocks_used"])
    said = [text.get_text() for text in occupancy.texts]
    assert any(f"{peak} of {told['blocks_total']}" in text for text in said)


def test_what_is_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    for text in ('{"bench": "layer"}', '{"bench": "replay"}', "{}", "no JSON"):
        results.write_text(text)
        assert plot.main([str(results)]) == 1
        assert str(results) in capsys.readouterr().err
    assert plot.main([str(tmp_path / "none.json")]) == 1
