# ruff: noqa: INP001  a script beside the page that it makes, not a package
"""Makes docs/api.md, the reference of the contract, from the comments in proto/.

python docs/api.py            writes the page
python docs/api.py --print    prints it and writes nothing
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc  # type: ignore[import-untyped]  # it comes without types

PROJECT = Path(__file__).parents[1]
PROTOS = PROJECT / "proto"
PAGE = PROJECT / "docs" / "api.md"
PACKAGE = "pointillist_destination.v1"
FILES = ("event_service", "event", "record", "dead_letter_service")  # in the order of the page
HEAD = """\
# The contract

<!-- made by `python docs/api.py` from the comments in proto/; edit those -->

Package `pointillist_destination.v1`. In JSON a field's name is in camelCase, as Segment writes it; `snake_case` is read
too. A field that is `optional` tells absent from zero; any other field that is left out is zero, empty or unset.
"""

_FIELD = descriptor_pb2.FieldDescriptorProto
_PATH_OF_MESSAGES, _PATH_OF_ENUMS, _PATH_OF_SERVICES, _PATH_OF_PARTS = 4, 5, 6, 2  # field numbers in descriptor.proto

_Place = tuple[int, ...]


def described() -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The files of the contract with their comments, by their name without folder and suffix.

    Raises:
        SystemExit: protoc refuses them; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "contract.binpb"
        paths = [f"{PACKAGE.replace('.', '/')}/{name}.proto" for name in FILES]
        well_known = Path(protoc.__file__).parent / "_proto"
        command = [
            "protoc",
            f"-I{PROTOS}",
            f"-I{well_known}",
            "--include_source_info",
            f"--descriptor_set_out={output}",
        ]
        if protoc.main([*command, *paths]):
            raise SystemExit(1)
        files = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file
    return {Path(file.name).stem: file for file in files}


def page() -> str:
    """The whole page."""
    files = described()
    sections = [HEAD] + ["\n".join(_FilePart(files[name]).lines()) for name in FILES]
    return "\n".join(sections).rstrip() + "\n"


class _FilePart:
    """What the page says of one file: its services first, then its messages and enums."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._file = file
        locations = file.source_code_info.location
        self._comments = {tuple(place.path): place.leading_comments for place in locations}

    def lines(self) -> Iterator[str]:
        for number, service in enumerate(self._file.service):
            yield from self._service((_PATH_OF_SERVICES, number), service)
        for number, message in enumerate(self._file.message_type):
            yield from self._message((_PATH_OF_MESSAGES, number), message)
        for number, enum in enumerate(self._file.enum_type):
            yield from self._enum((_PATH_OF_ENUMS, number), enum)

    def _text(self, path: _Place) -> str:
        """A comment, its lines unchanged."""
        return "\n".join(line.strip() for line in self._comments.get(path, "").strip().splitlines())

    def _cell(self, path: _Place) -> str:
        """A comment as a cell of a table."""
        return " ".join(self._text(path).split()).replace("|", "\\|")

    def _service(self, path: _Place, service: descriptor_pb2.ServiceDescriptorProto) -> Iterator[str]:
        yield from (
            f"## {service.name}",
            "",
            self._text(path),
            "",
            "| RPC | request | response | |",
            "| --- | --- | --- | --- |",
        )
        for number, method in enumerate(service.method):
            request = ("stream of " if method.client_streaming else "") + _link(method.input_type)
            response = ("stream of " if method.server_streaming else "") + _link(method.output_type)
            comment = self._cell((*path, _PATH_OF_PARTS, number))
            yield f"| `{method.name}` | {request} | {response} | {comment}{_idempotency(method)} |"
        yield ""

    def _message(self, path: _Place, message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
        yield from (
            f"### {message.name}",
            "",
            self._text(path),
            "",
            "| # | field | type | |",
            "| --- | --- | --- | --- |",
        )
        entries = {f".{PACKAGE}.{message.name}.{entry.name}": entry for entry in message.nested_type}
        for number, field in enumerate(message.field):
            comment = self._cell((*path, _PATH_OF_PARTS, number))
            kind = _map(entries[field.type_name]) if field.type_name in entries else _type(message, field)
            yield f"| {field.number} | `{field.name}` | {kind} | {comment} |"
        yield ""

    def _enum(self, path: _Place, enum: descriptor_pb2.EnumDescriptorProto) -> Iterator[str]:
        yield from (f"### {enum.name}", "", self._text(path), "", "| # | value | |", "| --- | --- | --- |")
        for number, value in enumerate(enum.value):
            yield f"| {value.number} | `{value.name}` | {self._cell((*path, _PATH_OF_PARTS, number))} |"
        yield ""


def _idempotency(method: descriptor_pb2.MethodDescriptorProto) -> str:
    level = method.options.idempotency_level
    if level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS:
        return " Read-only."
    if level == descriptor_pb2.MethodOptions.IDEMPOTENT:
        return " Idempotent."
    return ""


def _link(type_name: str) -> str:
    """A type's name; one of this page is a link."""
    full = type_name.removeprefix(".")
    name = full.removeprefix(f"{PACKAGE}.")
    return f"[{name}](#{name.lower()})" if name != full else f"`{full}`"


def _map(entry: descriptor_pb2.DescriptorProto) -> str:
    key, value = (_scalar(field) for field in entry.field)
    return f"map of {key} to {value}"


def _type(message: descriptor_pb2.DescriptorProto, field: descriptor_pb2.FieldDescriptorProto) -> str:
    words = ""
    if field.label == _FIELD.LABEL_REPEATED:
        words = "repeated "
    elif field.proto3_optional:
        words = "optional "
    elif field.HasField("oneof_index"):
        words = f"one of `{message.oneof_decl[field.oneof_index].name}`: "
    return words + _scalar(field)


def _scalar(field: descriptor_pb2.FieldDescriptorProto) -> str:
    return _link(field.type_name) if field.type_name else _FIELD.Type.Name(field.type).removeprefix("TYPE_").lower()


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page())
