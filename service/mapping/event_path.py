"""Paths to the values of an event, in Segment's own names, wherever the contract keeps them.

A path is a tuple of names, such as `("context", "device", "advertisingId")`; as text its names are joined with dots.
A message of the contract and its `extra` read together as one object, and the values in `Context.extra` under the
name of a typed part (`{"os": {"arch": ...}}`) is part of that part.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from service.mapping.value_text import Scalar, scalar_text, value_text

EXTRA = "extra"  # the field of a message for values beyond the documented fields

Path: TypeAlias = tuple[str, ...]
Node: TypeAlias = Message | Scalar
"""A node at a path: a message of the contract, a Struct, a Value, or a typed field's value."""

Finder: TypeAlias = Callable[[Message], list[tuple[Path, Node]]]
"""Finds the nodes at a path in a message: none, one node, or a typed node before those that extra adds to it."""

Leaf: TypeAlias = tuple[Path, str, bool]
"""A path, the value's text, and whether the value is a number."""


def top_level_names(message: Descriptor) -> tuple[str, ...]:
    """The names that a path in such a message can begin with."""
    return tuple(field.json_name for field in message.fields)


def top_level_values(message: Descriptor) -> frozenset[str]:
    """The top-level names below which nothing can lie."""
    return frozenset(field.json_name for field in message.fields if _object_type(field) is None)


def is_always_object(message: Descriptor, path: Path) -> bool:
    """Return True if the contract keeps an object at this path, in any event."""
    field = _field(message, path[0])
    below = None if field is None else _object_type(field)
    if below is None:
        return False
    return len(path) == 1 or (below is not Struct.DESCRIPTOR and is_always_object(below, path[1:]))


def object_field(message: Descriptor, path: Path) -> FieldDescriptor | None:
    """The field of the contract that is the whole of a path and holds an object; None where there is no such."""
    field = _field(message, path[0]) if len(path) == 1 else None
    return None if field is None or _object_type(field) is None else field


def finder(message: Descriptor, path: Path, base: Path = ()) -> Finder:
    """Return the finder of the nodes at `path` in messages of this type; `base` is the path of the message itself."""
    field = _field(message, path[0])
    typed = None if field is None else _typed_finder(field, path[1:], (*base, path[0]))
    if EXTRA not in message.fields_by_name:
        return typed or (lambda _: [])

    def find(holder: Message) -> list[tuple[Path, Node]]:
        found = typed(holder) if typed else []
        if holder.HasField(EXTRA):
            added = _in_struct(getattr(holder, EXTRA), path, base)
            if added is not None:
                return [*found, added]
        return found

    return find


def leaves(node: Node, path: Path = ()) -> Iterator[Leaf]:
    """Every value below a node that has a text, each once: strings, numbers, booleans, times and arrays.

    Args:
        node: where to begin; a value by itself is its own only leaf.
        path: the path of the node; the paths of the leaves begin with it.
    """
    if isinstance(node, Struct):
        fields = node.fields
        for key in fields:
            yield from leaves(fields[key], (*path, key))
    elif isinstance(node, Value):
        kind = node.WhichOneof("kind")
        if kind == "struct_value":
            yield from leaves(node.struct_value, path)
        elif (text := value_text(node, kind)) is not None:
            yield path, text, kind == "number_value"
    elif isinstance(node, Message) and not isinstance(node, Timestamp):
        for field, value in node.ListFields():
            yield from leaves(value, path if field.name == EXTRA else (*path, field.json_name))
    else:
        text = scalar_text(node)
        if text is not None:
            yield path, text, isinstance(node, float)


def is_object(node: Node) -> bool:
    """Return True if a node has keys of its own, rather than being one value."""
    if isinstance(node, Value):
        return node.HasField("struct_value")
    return isinstance(node, Message) and not isinstance(node, Timestamp)


def _typed_finder(field: FieldDescriptor, rest: Path, here: Path) -> Finder | None:
    """Return the finder of `rest` below a field of the contract, without extra; None if nothing can lie there."""
    name = field.name
    if rest:
        below = _object_type(field)
        if below is None:
            return None
        if below is Struct.DESCRIPTOR:
            return lambda holder: _listed(_in_struct(getattr(holder, name), rest, here))
        find = finder(below, rest, here)
        return lambda holder: find(getattr(holder, name)) if holder.HasField(name) else []
    if field.has_presence:
        return lambda holder: [(here, getattr(holder, name))] if holder.HasField(name) else []
    return lambda holder: [(here, value)] if (value := getattr(holder, name)) else []


def _in_struct(struct: Struct, path: Path, base: Path) -> tuple[Path, Node] | None:
    """Return the value at a path in a Struct: nested keys, or else a key that has the dots in it."""
    fields = struct.fields
    for size in range(1, len(path) + 1):
        key = ".".join(path[:size])
        if key not in fields:  # asking the map for a key that it has not would add the key
            continue
        value = fields[key]
        if size == len(path):
            return (*base, key), value
        if value.HasField("struct_value"):
            found = _in_struct(value.struct_value, path[size:], (*base, key))
            if found is not None:
                return found
    return None


def _listed(found: tuple[Path, Node] | None) -> list[tuple[Path, Node]]:
    return [] if found is None else [found]


def _field(message: Descriptor, name: str) -> FieldDescriptor | None:
    return next((field for field in message.fields if field.json_name == name and field.name != EXTRA), None)


def _object_type(field: FieldDescriptor) -> Descriptor | None:
    """The type of a field that holds an object; None for a field that holds one value."""
    return None if field.message_type is Timestamp.DESCRIPTOR else field.message_type
