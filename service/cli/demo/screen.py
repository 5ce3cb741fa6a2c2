"""The screen of the demonstration: records as they arrive, the outcome of the events, and next steps.

On a terminal in colours, and each record cut at the width of the window; elsewhere plain and whole.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

from service.cli.send.report import skipped_words
from service.cli.send.stream import Summary
from service.config.address import Listen

TRACK = (
    '{"track": {"userId": "u-1", "event": "Order Completed", "properties": {"revenue": 25.5, "currency": "USD"}},'
    ' "options": {"includeRecord": true, "waitForDelivery": true}}'
)


class Screen:
    """Standard output."""

    def __init__(self) -> None:
        """Find out whether it is a terminal."""
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
        self._cut = sys.stdout.isatty()

    def show_start(self, address: str, sandbox_url: str, outbox: str | None) -> None:
        """Show the addresses of the servers."""
        kept = f", with {outbox}" if outbox else ""
        self._say(f"No POINTILLIST_API_TOKEN is set, so this is a demonstration{kept}.", "bold")
        self._say(f"The server takes events at {address} (gRPC).")
        self._say(f"The sandbox stands in for Pointillist at {sandbox_url}.")
        self._say("Segment's own events go in; these records arrive:")

    def show_record(self, line: bytes) -> None:
        """Show one record."""
        record: dict[str, Any] = orjson.loads(line)
        actors = [f"{name}={_word(value)}" for ids in record["actors"].values() for name, value in ids.items()]
        text = Text.assemble(
            ("  → ", "green"),
            (_word(record["eventType"]), "bold"),
            ("  " + record["eventTime"], "dim"),
            ("  " + " ".join(actors), "cyan"),
            ("  " + _pairs(record["numbers"]), "yellow"),
            "  " + _pairs(record["labels"]),
        )
        self._console.print(text, no_wrap=self._cut, overflow="ellipsis" if self._cut else None)

    def show_outcome(self, delivered: int, summary: Summary, skipped: Mapping[str, int]) -> None:
        """Show the outcome of the events."""
        complete = delivered == summary.accepted
        self._say(f"{delivered} of {summary.accepted} delivered", "bold green" if complete else "bold red")
        if summary.duplicates:
            self._say(f"{summary.duplicates} duplicates: this outbox had taken them before")
        self._say(f"{summary.filtered} filtered: their integrations object keeps them from Pointillist")
        self._say(f"{skipped_words(skipped)} skipped: Pointillist takes identify and track alone")
        self._say(f"{summary.rejected} refused")
        for rejection in summary.rejections:
            self._say(f"  {rejection}")

    def show_next(self, address: str, sandbox: str, metrics: Listen | None) -> None:
        """Show next steps; the address of the metrics is known unless the system chose its port."""
        self._say("Try next, in another terminal:", "bold")
        self._say(f"  grpcurl -plaintext -d '{TRACK}' {address} pointillist_destination.v1.EventService/Track")
        self._say(f"  grpcurl -plaintext {address} grpc.health.v1.Health/Check")
        self._say(f"""  grpcurl -plaintext -d '{{"service": "delivery"}}' {address} grpc.health.v1.Health/Check""")
        self._say(f"  curl http://{sandbox}/records")
        if metrics is not None and metrics.port:
            self._say(f"  curl http://{metrics}/metrics")
        self._say("Ctrl-C ends it.")

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(Text(line, style), soft_wrap=True)
        self._console.file.flush()


def _pairs(values: Mapping[str, Any]) -> str:
    """Write labels or numbers on one line."""
    return " ".join(f"{_word(name)}={_word(value)}" for name, value in values.items())


def _word(value: object) -> str:
    """Write a value as it is where it is one plain word, else as JSON; its characters never move the cursor."""
    text = str(value)
    return text if text.isprintable() and text and " " not in text else json.dumps(value, ensure_ascii=False)
