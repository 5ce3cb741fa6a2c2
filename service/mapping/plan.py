"""The rows of a mapping, compiled for one type of event.

Nearly every event has no two values that end in the same key, so the labels and the numbers are poured straight into
their dicts. The first clash abandons that, and the event is mapped again with the path of every value known.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from pointillist_destination.v1.event_pb2 import Context, Identify, Track
from service.mapping.event_path import EXTRA, Finder, Node, Path, finder, is_object, leaves, object_field
from service.mapping.rules import LABELS, Row
from service.mapping.value_text import number_text, scalar_text, value_text

Texts: TypeAlias = dict[str, str]
"""Labels or numbers: name to text."""

OWN_ACTORS = ("userId", "anonymousId")  # that every mapping has
CONTEXT = "context"
CONTEXT_TRAITS = ("context", "traits")
PROPERTIES = ("properties",)


class _ClashError(Exception):
    """Two values end in the same key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of an event on its way into a record."""

    row: int
    """Which row takes it, counted from 1; 0 for the identifiers that every mapping has."""
    path: Path
    """Its path in the event."""
    name: str
    """Its key; of an identifier the class and the name, joined with a dot."""
    text: str
    """Its value."""


@dataclass(frozen=True, slots=True)
class _ActorRow:
    """A row that makes an identifier."""

    number: int
    actor_class: str
    name: str
    find: Finder


class _ValueRow:
    """A row that makes labels, or labels and numbers.

    Its methods are given the message, or the message's context where `is_in_context`: most rows look there, and to
    fetch it once is cheaper.
    """

    def __init__(self, number: int, row: Row, message: Descriptor) -> None:
        self.number = number
        self.has_numbers = row.to != LABELS
        path = tuple(row.source.split("."))
        self.is_in_context = path[0] == CONTEXT and len(path) > 1
        if self.is_in_context:
            self._find = finder(Context.DESCRIPTOR, path[1:], (CONTEXT,))
            field = object_field(Context.DESCRIPTOR, path[1:])
        else:
            self._find = finder(message, path)
            field = object_field(message, path)
        self._prefix = row.prefix
        self._name = _namer(row)
        self._field = self._own_name = ""
        self._pour_object: Callable[[Any, str, Texts, Texts], None] = _pour_typed
        self._pour = self._pour_plain if row.is_plain else self._pour_named
        if row.is_plain and field is not None:
            self._field, self._own_name = field.name, field.json_name
            if field.message_type is Struct.DESCRIPTOR:
                self._pour_object = _pour_struct
            self._pour = self._pour_whole

    def pour(self, holder: Message, labels: Texts, numbers: Texts) -> None:
        """Put the row's values of an event into labels and numbers; raises _ClashError where a key is taken."""
        self._pour(holder, labels, numbers if self.has_numbers else labels)

    def entries(self, holder: Message) -> Iterator[tuple[Entry, bool]]:
        """Yield the row's values of an event, and True for each that goes to numbers."""
        for path, node in self._find(holder):
            base = len(path) if is_object(node) else len(path) - 1
            for leaf, text, is_number in leaves(node, path):
                name = self._name(leaf[base:])
                if name is not None:
                    yield Entry(self.number, leaf, name, text), is_number and self.has_numbers

    def _pour_named(self, holder: Message, labels: Texts, numbers: Texts) -> None:
        for entry, is_number in self.entries(holder):
            _put(numbers if is_number else labels, entry.name, entry.text)

    def _pour_whole(self, holder: Message, labels: Texts, numbers: Texts) -> None:
        """The commonest row takes the whole of one field, such as properties, and need not look for it."""
        if self.is_in_context and holder.HasField(EXTRA) and self._own_name in getattr(holder, EXTRA).fields:
            self._pour_plain(holder, labels, numbers)
        elif holder.HasField(self._field):
            self._pour_object(getattr(holder, self._field), self._prefix, labels, numbers)

    def _pour_plain(self, holder: Message, labels: Texts, numbers: Texts) -> None:
        for path, node in self._find(holder):
            if type(node) is Struct:  # isinstance is slow with messages
                _pour_struct(node, self._prefix, labels, numbers)
            elif type(node) is Value:
                kind = node.WhichOneof("kind")
                if kind == "struct_value":
                    _pour_struct(node.struct_value, self._prefix, labels, numbers)
                elif (text := value_text(node, kind)) is not None:
                    _put(numbers if kind == "number_value" else labels, self._prefix + path[-1], text)
            elif isinstance(node, Message) and type(node) is not Timestamp:
                _pour_typed(node, self._prefix, labels, numbers)
            elif (text := scalar_text(node)) is not None:
                _put(numbers if type(node) is float else labels, self._prefix + path[-1], text)


class Plan:
    """The plan of a mapping for events of one type; immutable."""

    def __init__(self, message: Descriptor, rows: Iterable[Row], actor_class: str) -> None:
        self._value_rows: list[_ValueRow] = []
        self._actor_rows = [_ActorRow(0, actor_class, name, finder(message, (name,))) for name in OWN_ACTORS]
        for number, row in enumerate(rows, start=1):
            if row.actor is None:
                self._value_rows.append(_ValueRow(number, row, message))
            else:
                self._actor_rows.append(_ActorRow(number, *row.actor, finder(message, tuple(row.source.split(".")))))
        self._rows_outside_context = [row for row in self._value_rows if not row.is_in_context]
        self._actor_class = actor_class

    def labels_and_numbers(self, message: Identify | Track) -> tuple[Texts, Texts]:
        """The labels and the numbers of an event, in no particular order."""
        labels: Texts = {}
        numbers: Texts = {}
        context = message.context
        rows = self._value_rows if message.HasField("context") else self._rows_outside_context
        try:
            for row in rows:
                row.pour(context if row.is_in_context else message, labels, numbers)
        except _ClashError:
            label_entries, number_entries = self.entries(message)
            labels = {name: entry.text for name, entry in label_entries.items()}
            numbers = {name: entry.text for name, entry in number_entries.items()}
        return labels, numbers

    def entries(self, message: Identify | Track) -> tuple[dict[str, Entry], dict[str, Entry]]:
        """The labels and the numbers of an event by their final names, each with where it came from."""
        labels: list[Entry] = []
        numbers: list[Entry] = []
        for row in self._value_rows:
            for entry, is_number in row.entries(message.context if row.is_in_context else message):
                (numbers if is_number else labels).append(entry)
        return _without_clashes(labels), _without_clashes(numbers)

    def actors(self, message: Identify | Track) -> dict[str, Texts]:
        """The identifiers of an event as class > name > value; a class without any is left out."""
        own = {}
        if message.user_id:
            own["userId"] = message.user_id
        if message.anonymous_id:
            own["anonymousId"] = message.anonymous_id
        actors: dict[str, Texts] = {self._actor_class: own} if own else {}
        for row in self._actor_rows[len(OWN_ACTORS) :]:
            for _, node in row.find(message):
                if text := _identifier(node):
                    actors.setdefault(row.actor_class, {})[row.name] = text
                    break
        return actors

    def actor_entries(self, message: Message) -> Iterator[Entry]:
        """The identifiers of an event, each with where it came from."""
        for row in self._actor_rows:
            for path, node in row.find(message):
                if text := _identifier(node):
                    yield Entry(row.number, path, f"{row.actor_class}.{row.name}", text)
                    break


def _without_clashes(entries: list[Entry]) -> dict[str, Entry]:
    """Entries by a name that each has for itself.

    Where a track's trait and one of its properties have the same name, the trait's becomes `traits_<name>`. Then each
    takes its name if it is free, else the first free one of `<name>_2`, `<name>_3`, ...: in the order of the rows,
    then of the paths, compared as tuples of names by code point. A typed field comes before its namesake in extra.
    """
    of_properties = {entry.name for entry in entries if entry.path[:1] == PROPERTIES}
    named: dict[str, Entry] = {}
    next_suffix: dict[str, int] = {}  # so that a thousand namesakes do not try each other's suffixes again
    for entry in sorted(entries, key=lambda entry: (entry.row, entry.path)):
        wanted = entry.name
        if wanted in of_properties and entry.path[:2] == CONTEXT_TRAITS:
            wanted = f"traits_{wanted}"
        name, suffix = wanted, next_suffix.get(wanted, 2)
        while name in named:
            name, suffix = f"{wanted}_{suffix}", suffix + 1
        next_suffix[wanted] = suffix
        named[name] = entry
    return named


def _namer(row: Row) -> Callable[[Path], str | None]:
    """Return the function from a value's path, relative to the row's, to its key; None leaves it out."""
    prefix = row.prefix
    if row.is_plain:
        return lambda path: prefix + "_".join(path)
    keep, drop, rename = frozenset(row.keep), frozenset(row.drop), dict(row.rename)

    def name(path: Path) -> str | None:
        ancestors = [".".join(path[:size]) for size in range(1, len(path) + 1)]  # the path itself is the last
        if not drop.isdisjoint(ancestors) or (keep and keep.isdisjoint(ancestors)):
            return None
        for size in range(len(path), 0, -1):  # the most specific path wins
            renamed = rename.get(ancestors[size - 1])
            if renamed is not None:
                return "_".join((renamed, *path[size:]))
        return prefix + "_".join(path)

    return name


def _identifier(node: Node) -> str | None:
    """The text of an identifier; None or "" where there is none: null, an empty string, an object or an array."""
    if isinstance(node, Value):
        kind = node.WhichOneof("kind")
        return None if kind == "list_value" else value_text(node, kind)
    return None if isinstance(node, Message) and not isinstance(node, Timestamp) else scalar_text(node)


def _put(texts: Texts, name: str, text: str) -> None:
    if name in texts:
        raise _ClashError
    texts[name] = text


def _pour_struct(struct: Struct, prefix: str, labels: Texts, numbers: Texts) -> None:
    """Put the values of a Struct into labels and numbers.

    Strings and numbers come first: they are common, and reading a field that is not the value's kind gives
    the field's zero and costs half as much as asking for the kind.
    """
    fields = struct.fields
    for key in fields:
        value = fields[key]
        name = prefix + key
        text: str | None = value.string_value
        if text:
            into = labels
        elif number := value.number_value:
            text, into = number_text(number), numbers
        else:
            kind = value.WhichOneof("kind")
            if kind == "struct_value":
                _pour_struct(value.struct_value, name + "_", labels, numbers)
                continue
            text, into = value_text(value, kind), numbers if kind == "number_value" else labels
        if text is None:
            continue
        if name in into:
            raise _ClashError
        into[name] = text


def _pour_typed(node: Message, prefix: str, labels: Texts, numbers: Texts) -> None:
    """Put the context or a typed part of it, with its extra, into labels and numbers."""
    for field, value in node.ListFields():
        kind = type(value)
        name = prefix + field.json_name
        if kind is str:
            if name in labels:
                raise _ClashError
            labels[name] = value
        elif kind is Struct:
            _pour_struct(value, prefix if field.name == EXTRA else name + "_", labels, numbers)
        elif isinstance(value, Message):
            _pour_typed(value, name + "_", labels, numbers)
        elif (text := scalar_text(value)) is not None:
            _put(numbers if kind is float else labels, name, text)
