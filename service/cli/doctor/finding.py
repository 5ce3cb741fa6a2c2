"""A finding of `doctor`."""

from dataclasses import dataclass
from enum import StrEnum


class Grade(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of one check."""

    check: str
    grade: Grade
    text: str
    advice: str = ""
    """The remedy; empty if none is needed."""
