"""The rules of a mapping as values, from a valid mapping file."""

from dataclasses import dataclass

import orjson

ACTORS = "actors"  # the first name in the `to` of a row that makes an identifier: actors.<Class>.<Id>
LABELS = "labels"
NUMBERS = "numbers"
LABELS_AND_NUMBERS = "labels_and_numbers"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a mapping: values of an event and their place in the record."""

    source: str
    """The path in the event, in Segment's own names, such as `context.campaign`: the row's `from`."""
    to: str
    """`labels`, `numbers`, `labels_and_numbers` or `actors.<Class>.<Id>`.

    `labels_and_numbers` and `numbers` are one rule: a number goes to numbers, and any other value to labels, so
    that nothing is lost.
    """
    prefix: str = ""
    """The prefix of each key."""
    keep: tuple[str, ...] = ()
    """The only paths to keep, with all below them; empty for all."""
    drop: tuple[str, ...] = ()
    """The paths to leave out, with all below them; it wins over keep."""
    rename: tuple[tuple[str, str], ...] = ()
    """Pairs of a path and the final name of its value, which gets no prefix."""

    @property
    def actor(self) -> tuple[str, str] | None:
        """The class and the name of the identifier that the row makes, or None where it makes labels and numbers."""
        to, _, identifier = self.to.partition(".")
        if to != ACTORS:
            return None
        actor_class, _, name = identifier.partition(".")
        return actor_class, name

    @property
    def is_plain(self) -> bool:
        """Return True if every key is kept, under its own name."""
        return not (self.keep or self.drop or self.rename)


@dataclass(frozen=True, slots=True)
class Rules:
    """A whole mapping: its settings, and its rows for each type of event, in their order."""

    event_source: str = "Segment"
    """The eventSource of every record."""
    actor_class: str = "Customer"
    """The class of the actor whose identifiers are userId and anonymousId."""
    time_format: str = "iso8601"
    """The form of eventTime: `iso8601` or an strftime pattern."""
    numbers: str = "string"
    """The form of numbers: `string` (decimal strings) or `json` (JSON numbers)."""
    track: tuple[Row, ...] = ()
    """The rows for track events."""
    identify: tuple[Row, ...] = ()
    """The rows for identify events."""

    def as_toml(self) -> str:
        """The rules as the text of a mapping file that says the same."""
        lines = [
            f"event_source = {_toml(self.event_source)}",
            f"actor_class = {_toml(self.actor_class)}",
            f"time_format = {_toml(self.time_format)}",
            f"numbers = {_toml(self.numbers)}",
        ]
        for table, rows in (("track", self.track), ("identify", self.identify)):
            for row in rows:
                lines += ["", f"[[{table}]]", *_row_as_toml(row)]
        return "\n".join(lines) + "\n"


def _row_as_toml(row: Row) -> list[str]:
    lines = [f"from = {_toml(row.source)}", f"to = {_toml(row.to)}"]
    if row.prefix:
        lines.append(f"prefix = {_toml(row.prefix)}")
    if row.keep:
        lines.append(f"keep = [{', '.join(map(_toml, row.keep))}]")
    if row.drop:
        lines.append(f"drop = [{', '.join(map(_toml, row.drop))}]")
    if row.rename:
        pairs = ", ".join(f"{_toml(path)} = {_toml(name)}" for path, name in row.rename)
        lines.append(f"rename = {{{pairs}}}")
    return lines


def _toml(text: str) -> str:
    """A basic string of TOML: that of JSON, but for DEL, which TOML wants escaped."""
    return orjson.dumps(text).decode().replace("\x7f", "\\u007F")
