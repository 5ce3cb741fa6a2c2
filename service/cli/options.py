"""The options of every command that calls a server."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

CaFile: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Use TLS, and trust these certificate authorities.")
]
CertFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Own certificate, for a server that demands one; with --ca-file and --key-file."),
]
KeyFile: TypeAlias = Annotated[Path | None, typer.Option(metavar="FILE", help="The key of --cert-file.")]
TokenFile: TypeAlias = Annotated[Path | None, typer.Option(metavar="FILE", help="File with the caller's token.")]
