"""deploy/grafana/dashboard.json against a Prometheus that has scraped a service under load.

dashboard.py PROMETHEUS BEGAN    its address, and since when (seconds) there was load
"""

from __future__ import annotations

import json
import math
import pathlib
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "grafana"
# Panels where a healthy service has nothing but zeros.
ZERO = {
    "Jobs lost",
    "Restarts of groups",
    "Connections refused",
    "Connections cut off",
}
# What no panel asks for, and why.
UNUSED = {"mla_group_epoch": "a number of a job, of which only that there is one is asked"}


def ask(prometheus: str, path: str, **parameters: str) -> Any:
    url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]


def require(condition: bool, why: str) -> None:
    if not condition:
        sys.exit(f"dashboard: {why}")


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            yield panel


def filled(expression: str) -> str:
    """The expression as Grafana would send it, for all jobs and instances."""
    for name, value in (("$__rate_interval", "4s"), ("$job", ".*"), ("$instance", ".*")):
        expression = expression.replace(name, value)
    require("$" not in expression, f"an unknown variable in {expression}")
    return expression


def check_layout(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in dashboard["panels"]]
    require(len(set(ids)) == len(ids), "two panels have one id")
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        require(at["x"] + at["w"] <= 24, f"{panel['title']} is wider than the grid")
        require(not cells & taken, f"{panel['title']} lies on another panel")
        taken |= cells
    for panel in panels(dashboard):
        require(panel["datasource"]["uid"] == "${datasource}", f"{panel['title']}: its source")
        require(bool(panel["description"]), f"{panel['title']} does not say what it shows")


def check_panels(prometheus: str, began: str, dashboard: dict[str, Any]) -> int:
    count = 0
    for panel in panels(dashboard):
        title = panel["title"]
        for target in panel["targets"]:
            expression = filled(target["expr"])
            now = str(time.time())
            data = ask(prometheus, "query_range", query=expression, start=began, end=now, step="1")
            values = [float(value) for series in data["result"] for _, value in series["values"]]
            numbers = [value for value in values if math.isfinite(value)]
            require(bool(numbers), f"{title}: no data of {expression}")
            if title in ZERO:
                require(max(numbers) == 0, f"{title} is known for zeros, and is {max(numbers)}")
            else:
                require(max(numbers) > 0, f"{title}: nothing but zeros of {expression}")
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            for series in data["result"]:
                require(labels <= series["metric"].keys(), f"{title}: no {labels} to name it by")
            count += 1
    return count


def check_variables(prometheus: str, dashboard: dict[str, Any]) -> None:
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "query":
            continue
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        require(match is not None, f"the variable {variable['name']}")
        assert match
        data = ask(prometheus, "query", query=filled(match[1]))
        require(
            all(match[2] in series["metric"] for series in data["result"]) and data["result"] != [],
            f"the variable {variable['name']} has no values",
        )


def check_names(prometheus: str, dashboard: dict[str, Any]) -> None:
    """Every metric of the page is on the dashboard, and no other."""
    there = {
        re.sub("_(bucket|sum|count)$", "", name)
        for name in ask(prometheus, "label/__name__/values")
        if name.startswith("mla_")
    }
    expressions = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    expressions += [entry["expr"] for entry in dashboard["annotations"]["list"]]
    asked = {
        re.sub("_(bucket|sum|count)$", "", name)
        for expression in expressions
        for name in re.findall(r"\bmla_\w+", expression)
    }
    require(asked <= there, f"{asked - there} are not on the page")
    require(there - asked - UNUSED.keys() == set(), f"no panel shows {there - asked}")


def main() -> None:
    prometheus, began = sys.argv[1:]
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    check_layout(dashboard)
    check_names(prometheus, dashboard)
    check_variables(prometheus, dashboard)
    count = check_panels(prometheus, began, dashboard)
    print(f"dashboard: {count} queries of {len(list(panels(dashboard)))} panels have data")


if __name__ == "__main__":
    main()
