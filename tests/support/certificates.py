"""Certificates for tests, made by the openssl command as an operator would make them."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OPENSSL = shutil.which("openssl")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, both PEM files."""

    certificate: Path
    key: Path


def _openssl(*arguments: str | Path) -> None:
    assert OPENSSL is not None
    subprocess.run([OPENSSL, *arguments], check=True, capture_output=True, timeout=30)


def make_authority(folder: Path, name: str) -> Pair:
    """Make an authority that signs certificates."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"),
        *("-subj", f"/CN={name}", "-keyout", pair.key, "-out", pair.certificate),
    )
    return pair


def make_certificate(folder: Path, name: str, authority: Pair) -> Pair:
    """Make a certificate for this machine, signed by an authority."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", f"/CN={name}", "-keyout", pair.key, "-out", request),
    )
    _openssl(
        *("x509", "-req", "-in", request, "-CA", authority.certificate, "-CAkey", authority.key, "-CAcreateserial"),
        *("-days", "30", "-extfile", extensions, "-out", pair.certificate),
    )
    return pair
