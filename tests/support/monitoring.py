"""The queries of the dashboard, and a real Prometheus to ask them."""

import asyncio
import json
import math
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp

from tests.support.paths import DEPLOY
from tests.support.waiting import DEADLINE, until

DASHBOARD: Final = DEPLOY / "grafana" / "dashboard.json"
ALERTS: Final = DEPLOY / "prometheus" / "alerts.yaml"
JOB: Final = "pointillist-destination"
PROMETHEUS: Final = shutil.which("prometheus")
LOOK_INTERVAL: Final = 0.1  # seconds between two looks at whether there is something
PROMQL_WORDS: Final = {"and", "or", "unless", "by", "without", "on", "ignoring", "offset", "bool"}


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard, rows left out."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def filled(query: str, interval: str) -> str:
    """A panel's query with Grafana's own variables filled in: every instance, and rates over an interval."""
    return query.replace("$__rate_interval", interval).replace("$job", ".*").replace("$instance", ".*")


def metric_names(query: str) -> set[str]:
    """The metrics of a PromQL query: its names that are neither labels, functions nor words of the language."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", query)
    return set(re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)) - PROMQL_WORDS


def selectors(query: str) -> set[str]:
    """The series that a PromQL query is about: its metrics, each with its labels."""
    names = metric_names(query)
    return {found[0] for found in re.finditer(r"([a-zA-Z_:][\w:]*)(?:\{[^}]*\})?", query) if found[1] in names}


class Series(NamedTuple):
    """One series of an answer."""

    labels: dict[str, str]
    points: list[tuple[float, float]]
    """Seconds since the epoch, and a number; what is no number is left out."""


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A Prometheus that scrapes one server."""

    url: str

    async def query(self, query: str) -> list[Series]:
        """What a query comes to now."""
        found = await self._get("query", query=query)
        return [_series(one["metric"], [one["value"]]) for one in found["result"]]

    async def rules(self) -> list[dict[str, Any]]:
        """The alerts, with what became of their evaluation."""
        found = await self._get("rules")
        return [rule for group in found["groups"] for rule in group["rules"]]

    async def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"{self.url}/api/v1/{what}", params=parameters) as response,
        ):
            answer: dict[str, Any] = await response.json()
        assert answer["status"] == "success", (parameters, answer)
        data: dict[str, Any] = answer["data"]
        return data


async def silent(prometheus: Prometheus, queries: set[str]) -> set[str]:
    """Those of the queries that come to no number, after some waiting for one."""
    end = time.monotonic() + DEADLINE
    while True:
        queries = {query for query in queries if not any(one.points for one in await prometheus.query(query))}
        if not queries or time.monotonic() > end:
            return queries
        await asyncio.sleep(LOOK_INTERVAL)


def _series(labels: dict[str, str], values: list[tuple[float, str]]) -> Series:
    points = [(at, float(value)) for at, value in values]
    return Series(labels, [point for point in points if math.isfinite(point[1])])


@asynccontextmanager
async def scraping(folder: Path, metrics_url: str, interval: str) -> AsyncIterator[Prometheus]:
    """Have a Prometheus scrape a server, with the alerts of deploy/ as its rules.

    Args:
        folder: where it keeps what it needs.
        metrics_url: the server's.
        interval: between two scrapes, and between two looks at the alerts, such as "250ms".
    """
    assert PROMETHEUS is not None
    target = metrics_url.removeprefix("http://").removesuffix("/metrics")
    configuration = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [target]}]}],
    }
    file, log = folder / "prometheus.json", folder / "prometheus.log"
    file.write_text(json.dumps(configuration))  # which is YAML, too
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            PROMETHEUS,
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            "--web.listen-address=127.0.0.1:0",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=output,
        )
    try:
        await until(lambda: process.returncode is not None or "ready to receive web requests" in log.read_text())
        address = re.search(r'"Listening on" address=(\S+)', log.read_text())
        assert address is not None, log.read_text()
        yield Prometheus(f"http://{address[1]}")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
