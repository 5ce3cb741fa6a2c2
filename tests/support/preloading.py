"""Libraries that are preloaded into a server to stand between it and the C library: compiled here, Linux only."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path


def why_no_preloading() -> str | None:
    """The reason for which none can be made here; None where one can."""
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return "needs Linux and glibc, for a library that is preloaded (LD_PRELOAD)"
    if shutil.which("cc") is None:
        return "needs a C compiler (cc), for a library that is preloaded (LD_PRELOAD)"
    return None


def compiled(source: Path, folder: Path) -> Path:
    """Compile a library of one C file into a folder."""
    path = folder / source.with_suffix(".so").name
    flags = ("-O1", "-Wall", "-Wextra", "-shared", "-fPIC")
    subprocess.run(["cc", *flags, "-o", str(path), str(source), "-ldl"], check=True)
    return path
