"""The field of the contract that a violation's path leads to. Pure.

A path goes on below a Struct with the caller's own keys, such as `track.properties.cardNumber`. Those are content: in
metrics and logs the path ends at the Struct, `track.properties`.
"""

from google.protobuf.descriptor import Descriptor

from pointillist_destination.v1 import event_pb2

WELL_KNOWN = "google.protobuf."
ROOTS: dict[str, Descriptor] = {"track": event_pb2.Track.DESCRIPTOR, "identify": event_pb2.Identify.DESCRIPTOR}
UNPARSABLE = "unparsable"
"""Instead of a field, where the bytes are not the message that they should be."""


def contract_field(path: str) -> str:
    """Return the path without what a caller has chosen in it.

    Args:
        path: of a Violation; one that does not begin with an event's type is ours from end to end.
    """
    root, *steps = path.split(".")
    message = ROOTS.get(root)
    if message is None:
        return path or UNPARSABLE
    kept = [root]
    for step in steps:
        field = message.fields_by_name.get(step.partition("[")[0])
        if field is None:
            break
        kept.append(field.name)
        message = field.message_type
        if message is None or message.full_name.startswith(WELL_KNOWN):
            break
    return ".".join(kept)
