"""The rule of an event's integrations object: does it include Pointillist?

The rules are those of Segment's own library, found by running it.
"""

from google.protobuf.struct_pb2 import Struct

DESTINATION = "Pointillist"  # our name in Segment's integrations object; it is case-sensitive
EVERYONE = "All"  # the name for every destination; it is read in any case


def is_sent(integrations: Struct) -> bool:
    """Return True if an event with this integrations object is sent to Pointillist.

    Our own name decides alone where it is there; else `All` decides. Only `false` itself says no: `"false"`, `0`,
    `null` and `{}` say yes. Where `All` is there in several spellings, `All` itself counts, else the spelling that
    sorts first by code point.
    """
    fields = integrations.fields
    if not fields:
        return True
    name = DESTINATION if DESTINATION in fields else _everyone(integrations)
    if name is None:
        return True
    value = fields[name]
    return value.bool_value or value.WhichOneof("kind") != "bool_value"


def _everyone(integrations: Struct) -> str | None:
    """The key that speaks for every destination, or None."""
    fields = integrations.fields
    if EVERYONE in fields:
        return EVERYONE
    return min((key for key in fields if key.lower() == EVERYONE.lower()), default=None)
