"""The mapping file: TOML text to rules that have been found to be right.

Every error names the file, the row and the expected form; the first one ends the reading.
"""

import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import TypeAlias

from google.protobuf.descriptor import Descriptor

from pointillist_destination.v1 import event_pb2
from service.errors import MappingFileError
from service.mapping.event_path import is_always_object, top_level_names, top_level_values
from service.mapping.event_time import ISO8601, time_writer
from service.mapping.mapping import Mapping
from service.mapping.rules import ACTORS, LABELS, LABELS_AND_NUMBERS, NUMBERS, Row, Rules

BUILT_IN = "mapping.toml"  # in this package

_Table: TypeAlias = dict[str, object]

_DESCRIPTORS = {"track": event_pb2.Track.DESCRIPTOR, "identify": event_pb2.Identify.DESCRIPTOR}
_SETTINGS = ("event_source", "actor_class", "time_format", "numbers")
_ROW_KEYS = ("from", "to", "prefix", "keep", "drop", "rename")
_TO = f"{LABELS}, {NUMBERS}, {LABELS_AND_NUMBERS} or {ACTORS}.<Class>.<Id>"


def load_mapping(path: Path | None) -> Mapping:
    """The mapping of an operator's file, or the built-in one.

    Args:
        path: the file; None for the built-in mapping.

    Raises:
        MappingFileError: the file cannot be read or used.
    """
    if path is None:
        text = resources.files(__package__).joinpath(BUILT_IN).read_text("utf-8")
        return compile_mapping(text, f"the built-in {BUILT_IN}")
    try:
        text = path.read_text("utf-8-sig")  # a byte order mark is no fault
    except OSError as error:
        raise MappingFileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MappingFileError(f"{path}: byte {error.start} is not UTF-8, which TOML is written in") from error
    return compile_mapping(text, str(path))


def compile_mapping(text: str, source: str) -> Mapping:
    """The mapping that the text of a mapping file describes.

    A setting that the text leaves out has its default; rows that it leaves out are not there.

    Args:
        text: TOML.
        source: the file's name, for messages.

    Raises:
        MappingFileError: the text is not TOML, or it breaks a rule of mapping files.
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise MappingFileError(f"{source}: is not TOML: {error}") from error
    _check_names(table, (*_SETTINGS, *_DESCRIPTORS), source)
    settings = {name: _text(table[name], f"{source}: {name}") for name in _SETTINGS if name in table}
    _check_settings(settings, source)
    actor_class = settings.get("actor_class", Rules().actor_class)
    rows = {name: _rows(table.get(name, []), name, actor_class, source) for name in _DESCRIPTORS}
    return Mapping(Rules(**settings, **rows))  # type: ignore[arg-type]  # mypy cannot tell which name has which type


def _check_settings(settings: dict[str, str], source: str) -> None:
    """Refuse a setting whose text is not one of those it can have."""
    numbers = settings.get("numbers", "string")
    if numbers not in ("string", "json"):
        raise MappingFileError(f'{source}: numbers is "{numbers}"; expected "string" or "json"')
    time_format = settings.get("time_format", ISO8601)
    try:
        time_writer(time_format)
    except ValueError as error:
        raise MappingFileError(
            f'{source}: time_format is "{time_format}"; expected "{ISO8601}" or an strftime pattern with a directive '
            'in it, such as "%Y-%m-%dT%H:%M:%S%z"'
        ) from error


def _rows(tables: object, name: str, actor_class: str, source: str) -> tuple[Row, ...]:
    """The rows for one type of event, `name` being track or identify."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise MappingFileError(f"{source}: {name} is {_kind(tables)}; expected rows, each of which begins [[{name}]]")
    rows: list[Row] = []
    makers = {(actor_class, built_in): "every mapping" for built_in in ("userId", "anonymousId")}
    for number, table in enumerate(tables, start=1):
        where = f"{source}: row {number} of [[{name}]]"
        row = _row(table, _DESCRIPTORS[name], where)
        if row.actor is not None:
            if row.actor in makers:
                raise MappingFileError(
                    f"{where}: {row.to} is made by {makers[row.actor]} already; expected one row for an identifier"
                )
            makers[row.actor] = f"row {number}"
        rows.append(row)
    return tuple(rows)


def _row(table: _Table, message: Descriptor, where: str) -> Row:
    _check_names(table, _ROW_KEYS, where)
    for name in ("from", "to"):
        if name not in table:
            raise MappingFileError(f"{where}: has no {name}; expected {_TO if name == 'to' else 'a path in the event'}")
    row = Row(
        source=_path(table["from"], f"{where}: from"),
        to=_text(table["to"], f"{where}: to"),
        prefix=_text(table.get("prefix", ""), f"{where}: prefix", may_be_empty=True),
        keep=_paths(table.get("keep", []), f"{where}: keep"),
        drop=_paths(table.get("drop", []), f"{where}: drop"),
        rename=tuple(_pairs(table.get("rename", {}), f"{where}: rename")),
    )
    _check_source(row, message, where)
    _check_target(row, message, where)
    _check_options(row, where)
    return row


def _check_source(row: Row, message: Descriptor, where: str) -> None:
    """Refuse a path that no event of this type can have."""
    first, _, rest = row.source.partition(".")
    names = top_level_names(message)
    if first not in names:
        right = _nearest(first, names)
        raise MappingFileError(
            f'{where}: from is "{row.source}", which is no path in {message.name.lower()} messages; expected one '
            f"that begins with {right or _either(names)}"
        )
    if rest and first in top_level_values(message):
        raise MappingFileError(
            f'{where}: from is "{row.source}", but {first} is one value with nothing below it; expected "{first}"'
        )


def _check_target(row: Row, message: Descriptor, where: str) -> None:
    """Refuse an unknown `to`, and options that an identifier cannot have."""
    if row.actor is None:
        if row.to not in (LABELS, NUMBERS, LABELS_AND_NUMBERS):
            raise MappingFileError(f'{where}: to is "{row.to}"; expected {_TO}')
        return
    actor_class, name = row.actor
    if not actor_class or not name or "." in name:
        raise MappingFileError(
            f'{where}: to is "{row.to}"; expected {ACTORS}.<Class>.<Id>, such as actors.Order.orderId'
        )
    if is_always_object(message, tuple(row.source.split("."))):
        raise MappingFileError(
            f'{where}: from is "{row.source}", an object, and an identifier is one value; expected a path below it'
        )
    if row.prefix or not row.is_plain:
        raise MappingFileError(
            f"{where}: has prefix, keep, drop or rename; expected none of them in a row to {row.to}, which is one value"
        )


def _check_options(row: Row, where: str) -> None:
    """Refuse to rename one path twice, and to keep or rename a dropped path."""
    renamed = [path for path, _ in row.rename]
    twice = next((path for path in renamed if renamed.count(path) > 1), None)
    if twice is not None:
        raise MappingFileError(f'{where}: rename names "{twice}" twice; expected one name for a path')
    for option, paths in (("keep", row.keep), ("rename", renamed)):
        for path in paths:
            dropped = next((other for other in row.drop if f"{path}.".startswith(f"{other}.")), None)
            if dropped is not None:
                raise MappingFileError(
                    f'{where}: {option} names "{path}", which drop = ["{dropped}"] leaves out; expected one of them'
                )


def _check_names(table: _Table, expected: Iterable[str], where: str) -> None:
    """Refuse a key that means nothing."""
    for name in table:
        if name not in expected:
            right = _nearest(name, expected)
            raise MappingFileError(f'{where}: unknown key "{name}"; expected {right or _either(expected)}')


def _text(value: object, where: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise MappingFileError(f"{where} is {_kind(value)}; expected a string")
    if not value and not may_be_empty:
        raise MappingFileError(f"{where} is empty; expected a string of one character or more")
    return value


def _path(value: object, where: str) -> str:
    path = _text(value, where)
    if not all(path.split(".")):
        raise MappingFileError(f'{where} is "{path}", which has an empty name in it; expected names with dots between')
    return path


def _paths(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise MappingFileError(f'{where} is {_kind(value)}; expected an array of paths, such as ["email"]')
    return tuple(_path(path, f"{where}[{index}]") for index, path in enumerate(value))


def _pairs(value: object, where: str, above: str = "") -> Iterable[tuple[str, str]]:
    """Paths and names of a rename table.

    `{address.city = "city"}`, which TOML reads as a table in a table, says the same as `{"address.city" = "city"}`.
    """
    if not isinstance(value, dict):
        raise MappingFileError(f'{where} is {_kind(value)}; expected a table of paths and names, such as {{a = "b"}}')
    for key, name in value.items():
        path = _path(above + key, f"a path in {where}")
        if isinstance(name, dict):
            yield from _pairs(name, where, f"{path}.")
        else:
            yield path, _text(name, f"{where}: {path}")


def _nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, in quotes."""
    by_lower = {other.lower(): other for other in names}
    close = get_close_matches(name.lower(), by_lower, n=1)
    return f'"{by_lower[close[0]]}"' if close else None


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def _kind(value: object) -> str:
    """Return TOML's name of a value's type."""
    kinds = {str: "a string", bool: "a boolean", int: "an integer", float: "a float", list: "an array", dict: "a table"}
    return kinds.get(type(value), "a date or time")
