"""Pictures of what the benches measured.

    mla-bench run --endpoint E --in-flight 1,2,4 --json run.json
    python -m mla_client.plot run.json -o run.png

Draws the JSON of `mla-bench run` and of mla_client.bench (latency of a RUN by hop, throughput
against steps in flight), and of `mla-bench replay` (time per output token, batch, KV occupancy over
time).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
except ImportError as error:
    raise ImportError("pictures want matplotlib: pip install 'mla-client[plot]'") from error

__all__ = ["draw", "main"]

# Of Okabe and Ito: told apart by everybody, and in grey.
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8C8C8C", "#222222"
STYLE: dict[str, Any] = {"size": 9, "color": INK}

HOPS = {
    "to_coordinator_us": "client to coordinator",
    "queued_us": "queued in the coordinator",
    "wire_us": "to the workers and back",
    "compute_us": "computing",
    "collectives_us": "collectives",
    "gather_us": "gathering",
    "to_client_us": "coordinator to client",
    "total_us": "all of it",
}
SHOWN_US_MIN = 0.5  # hops that take less are not worth a line


def draw(results: dict[str, Any], note: str = "") -> Figure:
    """The picture of one bench's JSON. note: a line at its foot, such as which machine it was."""
    kinds = {"run": _run, "replay": _replay}
    kind = results.get("bench")
    if kind not in kinds:
        raise ValueError(f"there is no picture of {kind!r}, only of {' and '.join(kinds)}")
    try:
        figure = kinds[kind](results)
    except KeyError as error:
        raise ValueError(f"{error} is missing: it is of another version of mla-bench") from error
    if note:
        figure.text(0.01, 0.012, note, size=8, color=GREY)
    return figure


def _axes(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", size=10, color=INK, weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def _time(microseconds: float) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds:.3g} us"


# mla-bench run


def _run(results: dict[str, Any]) -> Figure:
    rounds = sorted(results["rounds"], key=lambda one: one["in_flight"])
    figure = Figure(
        figsize=(9, 3.6), dpi=110, layout=ConstrainedLayoutEngine(rect=(0, 0.05, 1, 0.95))
    )
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _hops(left, rounds[0])
    _throughput(right, rounds)
    left.set_xlabel(
        f"{results['rows']} rows of {results['context']} tokens, {results['dtype']}, payloads "
        f"{results['payload']}; groups: {results['groups']}, ranks of each: {results['ranks']}",
        **STYLE,
    )
    return figure


def _hops(axes: Axes, one: dict[str, Any]) -> None:
    """A line from the median to P99 for each hop. Times differ by orders of magnitude, so the
    scale is logarithmic."""
    parts = one["parts"]
    shown = [
        (name, parts[key]["median"], parts[key]["p99"])
        for key, name in HOPS.items()
        if parts[key]["p99"] >= SHOWN_US_MIN
    ]
    _axes(axes, f"Where the time of a RUN goes ({_flights(one['in_flight'])})")
    axes.grid(visible=False)
    axes.set_xscale("log")
    for place, (name, median, p99) in enumerate(shown):
        color = INK if name == HOPS["total_us"] else BLUE
        low = max(median, SHOWN_US_MIN)
        axes.plot([low, p99], [place, place], color=color, linewidth=2, alpha=0.35)
        axes.plot(low, place, "o", color=color, markersize=6)
        axes.plot(p99, place, "|", color=color, markersize=8, markeredgewidth=1.5)
        text = f"{_time(median)}   P99 {_time(p99)}"
        axes.annotate(text, (p99, place), (8, 0), textcoords="offset points", va="center", **STYLE)
    axes.set_yticks(range(len(shown)), [name for name, _, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    # Room for the text behind the longest line.
    low = max(SHOWN_US_MIN, min(median for _, median, _ in shown))
    axes.set_xlim(low / 2, max(p99 for _, _, p99 in shown) * 30)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="y", length=0, labelsize=9)


def _flights(count: int) -> str:
    return f"{count} step in flight" if count == 1 else f"{count} steps in flight"


def _throughput(axes: Axes, rounds: Sequence[dict[str, Any]]) -> None:
    _axes(axes, "Rows of one layer, a second")
    rows = [one["rows_per_s"] for one in rounds]
    axes.bar(range(len(rows)), rows, width=0.7, color=BLUE)
    for place, one in enumerate(rounds):
        at = (place, one["rows_per_s"])
        axes.annotate(
            f"{one['rows_per_s']:,.0f}", at, (0, 3), textcoords="offset points", ha="center",
            **STYLE,
        )  # fmt: skip
        axes.annotate(
            f"workers\ncompute\n{one['computing_percent']:.0f} %", at, (0, -6), ha="center",
            textcoords="offset points", va="top", size=8, color="white",
        )  # fmt: skip
    axes.set_ylim(0, max(rows) * 1.15)
    axes.set_xticks(range(len(rounds)), [str(one["in_flight"]) for one in rounds])
    axes.set_xlim(-0.5, len(rounds) - 0.5)
    axes.set_xlabel("steps in flight", **STYLE)


# mla-bench replay


def _replay(results: dict[str, Any]) -> Figure:
    timeline = {name: np.asarray(values) for name, values in results["timeline"].items()}
    order = np.argsort(timeline["ended_s"], kind="stable")
    timeline = {name: values[order] for name, values in timeline.items()}
    figure = Figure(
        figsize=(9, 6.2), dpi=110, layout=ConstrainedLayoutEngine(rect=(0, 0.03, 1, 0.97))
    )
    figure.suptitle(
        f"{results['completed']} requests, {results['max_concurrency']} at a time, "
        f"{results['layers']} layers: {results['output_throughput']:,.0f} output tokens a second",
        size=11, color=INK, x=0.01, ha="left",
    )  # fmt: skip
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(4, 3, 3))
    _token_times(top, results, timeline)
    _batch(middle, timeline)
    _occupancy(bottom, results, timeline)
    bottom.set_xlabel("seconds since the start", **STYLE)
    bottom.set_xlim(0, timeline["ended_s"].max())
    return figure


def _token_times(axes: Axes, results: dict[str, Any], timeline: dict[str, Any]) -> None:
    """Each step gives all that decode in it one token: its time is theirs."""
    _axes(axes, "Time per output token, ms: a dot is a step")
    ended, lane = timeline["ended_s"], timeline["lane"]
    gaps = np.empty_like(ended)
    for one in np.unique(lane):
        gaps[lane == one] = np.diff(ended[lane == one], prepend=0.0)
    prefill = (timeline["prefill_rows"] > 0) & (timeline["decode_rows"] > 0)
    decode = timeline["prefill_rows"] == 0
    for chosen, color, name, size in (
        (decode, BLUE, "decode alone", 4),
        (prefill, ORANGE, "with a prompt's chunk in the step", 9),
    ):
        if chosen.any():
            axes.scatter(ended[chosen], gaps[chosen] * 1e3, s=size, color=color, alpha=0.5,
                         linewidths=0, label=name)  # fmt: skip
    median = results["tpot_ms"]["median"]
    axes.axhline(median, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.annotate(
        f"median of the requests {median:.3g}, P99 {results['tpot_ms']['p99']:.3g}",
        (1, median), (-4, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}, **STYLE,
    )  # fmt: skip
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9,
        labelcolor=INK, markerscale=2, borderaxespad=0, handletextpad=0.1,
    )  # fmt: skip


def _over_lanes(timeline: dict[str, Any], name: str) -> Any:
    """What all lanes have while each step is under way."""
    values, lane = timeline[name], timeline["lane"]
    total = np.zeros(len(values))
    for one in np.unique(lane):
        places = np.flatnonzero(lane == one)
        before = np.searchsorted(places, np.arange(len(values)))  # of its steps that end earlier
        here = places[np.minimum(before, len(places) - 1)]
        total += np.where(before < len(places), values[here], 0)  # the one under way
    return total


def _batch(axes: Axes, timeline: dict[str, Any]) -> None:
    _axes(axes, "Batch: sequences that decode in a step")
    ended = timeline["ended_s"]
    rows, active = _over_lanes(timeline, "decode_rows"), _over_lanes(timeline, "active")
    axes.fill_between(ended, rows, step="pre", color=BLUE, alpha=0.3, linewidth=0)
    axes.step(ended, rows, where="pre", color=BLUE, linewidth=1)
    axes.step(ended, active, where="pre", color=GREY, linewidth=1)
    axes.set_ylim(0, active.max() * 1.25)
    last = int(np.flatnonzero(active == active.max())[-1])
    axes.annotate(
        "requests under way", (ended[last], active[last]), (0, 4), textcoords="offset points",
        ha="right", size=9, color="#666666",
    )  # fmt: skip


def _occupancy(axes: Axes, results: dict[str, Any], timeline: dict[str, Any]) -> None:
    ended, used, total = timeline["ended_s"], timeline["blocks_used"], results["blocks_total"]
    _axes(axes, "KV blocks in use")
    axes.fill_between(ended, used, step="pre", color=BLUE, alpha=0.3, linewidth=0)
    axes.step(ended, used, where="pre", color=BLUE, linewidth=1)
    peak = int(used.argmax())
    crowded = used[peak] > 0.8 * total  # the line of the total is where the text would be
    if used[peak] > 0.4 * total:
        axes.set_ylim(0, total * 1.25)
        axes.axhline(total, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"all {total} blocks", (1, total), (-4, 4), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", **STYLE,
        )  # fmt: skip
    else:
        axes.set_ylim(0, max(1, used[peak]) * 1.35)
    axes.plot(ended[peak], used[peak], "o", color=BLUE, markersize=5)
    axes.annotate(
        f"{used[peak]} of {total}, {100 * used[peak] / total:.2g} %", (ended[peak], used[peak]),
        (0, -40 if crowded else 5), textcoords="offset points", ha="center", **STYLE,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mla_client.plot", description="A picture of what mla-bench wrote as JSON."
    )
    parser.add_argument("results", type=Path, help="of mla-bench run or replay, with --json")
    parser.add_argument("-o", "--out", type=Path, help="the PNG (beside the results)")
    parser.add_argument("--note", default="", help="a line at its foot, such as the machine")
    options = parser.parse_args(arguments)
    try:
        figure = draw(json.loads(options.results.read_text()), options.note)
        out = options.out or options.results.with_suffix(".png")
        figure.savefig(out)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {options.results}: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
