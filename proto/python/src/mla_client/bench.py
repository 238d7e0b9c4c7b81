"""Latency and throughput of RUN, as this client sees them: `python -m mla_client.bench --help`.

It does what `mla-bench run` does, and tells the same numbers, so that the two can be compared.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mla_client._wire import Entry, RunTimes
from mla_client.client import Client, Future, Step

PARTS = {
    "to_coordinator_us": "client to coordinator",
    "queued_us": "queued in the coordinator",
    "wire_us": "to the workers and back",
    "compute_us": "compute",
    "collectives_us": "collectives",
    "gather_us": "gather",
    "to_client_us": "coordinator to client",
    "total_us": "total",
    "not_compute_us": "not compute",
}


def parts_of(sent_ns: int, returned_ns: int, times: RunTimes) -> tuple[float, ...]:
    """Microseconds, in the order of PARTS."""
    held = times.replied_ns - times.received_ns
    told = times.queued_ns + times.compute_ns + times.collective_ns + times.gathered_ns
    total = returned_ns - sent_ns
    spans = (
        times.received_ns - sent_ns, times.queued_ns, held - told, times.compute_ns,
        times.collective_ns, times.gathered_ns, returned_ns - times.replied_ns, total,
        total - times.compute_ns,
    )  # fmt: skip
    return tuple(span / 1e3 for span in spans)


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Nearest ranks."""
    ordered = sorted(samples)
    return {
        "median": ordered[math.ceil(len(ordered) * 0.5) - 1],
        "p99": ordered[math.ceil(len(ordered) * 0.99) - 1],
    }


class Bench:
    """Steps of decode: `rows` sequences of `context` tokens, each with one new token."""

    def __init__(self, client: Client, options: argparse.Namespace):
        self.client = client
        self.options = options
        self.layers = client.info.layers[: options.layers or len(client.info.layers)]
        shape = (options.rows, client.info.hidden)
        dtype = {"bf16": "bfloat16", "f32": "float32"}[options.dtype]
        lanes = max(options.in_flight)
        self.x = client.buffer(shape, dtype)
        self.x[...] = np.random.default_rng(1).uniform(-1, 1, shape).astype(self.x.dtype)
        self.out: list[Any] = [client.buffer(shape, dtype) for _ in range(lanes)]
        if options.arrays == "plain":
            self.x, self.out = self.x.copy(), [None] * lanes

    def lengthen(self) -> None:
        """Steps without RUNs: nothing is computed for it, and the cached values are whatever was
        there."""
        info, context = self.client.info, self.options.context
        for sequence in range(1, 1 + self.options.rows * len(self.out)):
            done = 0
            while done < context:
                tokens = min(context - done, info.step_tokens_max)
                self.client.step([Entry(sequence, done, tokens)]).commit()
                done += tokens

    def open(self, lane: int) -> Step:
        first = lane * self.options.rows + 1
        context = self.options.context
        return self.client.step([Entry(first + i, context, 1) for i in range(self.options.rows)])

    def drive(self, steps: list[Step], repeat: int, seconds: float,
              samples: list[tuple[float, ...]]) -> float:  # fmt: skip
        """Every step goes on with its next layer as soon as it has its last one's output. The
        time it took."""
        client, layers, x, out = self.client, self.layers, self.x, self.out
        sent_ns = [0] * len(steps)
        counts = [0] * len(steps)
        lanes: dict[Future[Any], int] = {}

        def submit(lane: int) -> None:
            layer = layers[counts[lane] % len(layers)]
            counts[lane] += 1
            sent_ns[lane] = time.monotonic_ns()
            lanes[steps[lane].submit(layer, x, out=out[lane])] = lane

        begin_ns = returned_ns = time.monotonic_ns()
        for lane in range(len(steps)):
            submit(lane)
        submitted = len(steps)
        while lanes:
            future = client.first(lanes)
            future.result()
            returned_ns = time.monotonic_ns()
            lane = lanes.pop(future)
            sent = sent_ns[lane]
            if submitted < repeat if repeat else returned_ns - begin_ns < seconds * 1e9:
                submitted += 1
                submit(lane)
            assert future.times is not None
            samples.append(parts_of(sent, returned_ns, future.times))
        return (returned_ns - begin_ns) / 1e9

    def round(self, in_flight: int) -> dict[str, Any]:
        options = self.options
        steps = [self.open(lane) for lane in range(in_flight)]
        self.drive(steps, 0, options.warm_up, [])
        samples: list[tuple[float, ...]] = []
        gc.collect()
        before = sum(os.times()[:2])
        duration_s = self.drive(steps, options.repeat, options.seconds, samples)
        cores = (sum(os.times()[:2]) - before) / duration_s
        for step in steps:
            step.abort()
        columns = dict(zip(PARTS, zip(*samples, strict=True), strict=True))
        computing_us = sum(columns["compute_us"]) + sum(columns["collectives_us"])
        runs_per_s = len(samples) / duration_s
        return {
            "in_flight": in_flight,
            "duration_s": duration_s,
            "runs_per_s": runs_per_s,
            "rows_per_s": runs_per_s * options.rows,
            "mean_us": sum(columns["total_us"]) / len(samples),
            "computing_percent": computing_us / duration_s / 1e4,
            "parts": {"runs": len(samples)}
            | {key: summary(column) for key, column in columns.items()},
            "client_cores": cores,
        }

    def opens(self) -> dict[str, dict[str, float]]:
        """OPEN, a step's first RUN, which waits for the workers to have built the step, and CLOSE.
        Aborted, so that each one begins where the last did."""
        spans: dict[str, list[float]] = {"open_us": [], "first_run_us": [], "close_us": []}
        for _ in range(self.options.opens):
            times = [time.monotonic_ns()]
            step = self.open(0)
            times.append(time.monotonic_ns())
            step.run(self.layers[0], self.x, out=self.out[0])
            times.append(time.monotonic_ns())
            step.abort()
            times.append(time.monotonic_ns())
            for i, key in enumerate(spans):
                spans[key].append((times[i + 1] - times[i]) / 1e3)
        return {key: summary(values) for key, values in spans.items()}

    def measure(self) -> dict[str, Any]:
        options, info = self.options, self.client.info
        self.lengthen()
        results = {
            "bench": "run",
            "client": "python",
            "arrays": options.arrays,
            "rows": options.rows,
            "context": options.context,
            "layers": len(self.layers),
            "dtype": options.dtype,
            "payload": "shared" if self.client.shared else "inline",
            "groups": info.groups,
            "ranks": info.ranks,
            "client_spins": False,
            "rounds": [self.round(in_flight) for in_flight in options.in_flight],
            **self.opens(),
        }
        self.client.free(*range(1, 1 + options.rows * len(self.out)))
        return results


def show(results: dict[str, Any]) -> None:
    """As `mla-bench run` shows them."""
    print(
        f"{results['rows']} rows, context {results['context']}, {results['layers']} layers, "
        f"{results['dtype']}, payloads {results['payload']} ({results['arrays']}), "
        f"{results['groups']} groups of {results['ranks']} ranks"
    )
    head = ("in flight", "RUNs", "RUNs/s", "median us", "P99 us", "mean us", "computing")
    print("\n{:<10} {:>8} {:>10} {:>10} {:>10} {:>10} {:>9}  cores of this client".format(*head))
    for one in results["rounds"]:
        total = one["parts"]["total_us"]
        print(
            f"{one['in_flight']:<10} {one['parts']['runs']:>8} {one['runs_per_s']:>10.1f} "
            f"{total['median']:>10.1f} {total['p99']:>10.1f} {one['mean_us']:>10.1f} "
            f"{one['computing_percent']:>8.1f}%  {one['client_cores']:.2f}"
        )
    line = "{:<28} {:>12} {:>12}"
    for one in results["rounds"]:
        print(f"\nRUNs, {one['in_flight']} in flight ({one['parts']['runs']}), microseconds")
        print(line.format("", "median", "P99"))
        for key, name in PARTS.items():
            print("{:<28} {median:>12.1f} {p99:>12.1f}".format(name, **one["parts"][key]))
    print("\nSteps, microseconds")
    print(line.format("", "median", "P99"))
    for key, name in (("open_us", "OPEN"), ("first_run_us", "first RUN"), ("close_us", "CLOSE")):
        print("{:<28} {median:>12.1f} {p99:>12.1f}".format(name, **results[key]))


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mla_client.bench",
        description="What mla-bench run measures, with the Python client.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    def numbers(text: str) -> list[int]:
        values = [int(word) for word in text.split(",")]
        if not values or min(values) < 1:
            raise ValueError
        return values

    add = parser.add_argument
    add("--endpoint", required=True, help="of the service (tcp://host:port or ipc:///path)")
    add("--rows", type=int, default=16, help="sequences of a step, each with one new token")
    add("--context", type=int, default=512, help="tokens that they have already")
    add("--layers", type=int, default=0, help="the first N layers of the service; 0: all")
    add("--in-flight", type=numbers, default="1", help="steps open at a time, as 1,2,3")
    add("--payload", choices=("auto", "inline"), default="auto",
        help="inline: no shared memory")  # fmt: skip
    add("--arrays", choices=("buffers", "plain"), default="buffers",
        help="buffers of the client, or any other arrays and new outputs")  # fmt: skip
    add("--dtype", choices=("bf16", "f32"), default="bf16", help="of inputs and outputs")
    add("--repeat", type=int, default=0, help="RUNs of a round; 0: as many as fit --seconds")
    add("--seconds", type=float, default=5.0, help="how long a round measures")
    add("--warm-up", type=float, default=0.5, help="seconds of RUNs before that don't count")
    add("--opens", type=int, default=100, help="steps opened and closed to time that")
    add("--curve-keys", type=Path, default=None, help="folder of mla-keys")
    add("--json", type=Path, default=None, help="writes the numbers there as well")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    shared = options.payload == "auto"
    with Client(options.endpoint, curve_keys=options.curve_keys, shared_memory=shared) as client:
        results = Bench(client, options).measure()
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
