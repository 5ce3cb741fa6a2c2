"""The behaviour of the sandbox: its answers and their shares, their delay and their `Retry-After`.

As JSON, every key optional: `{"answers": {"200": 0.7, "503": 0.2, "drop": 0.1}, "delay": "50ms", "retry_after": "5s"}`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Any

from service.config.units import format_duration, parse_duration
from service.errors import SettingsError

WITHOUT_ANSWER = ("drop", "hang", "truncate")

_KEYS = frozenset({"answers", "delay", "retry_after"})
_STATUS = re.compile(r"[2-5][0-9][0-9]")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The answers to POSTs with the right token.

    Raises:
        SettingsError: the message names the key and a valid form.
    """

    answers: Mapping[str, float] = field(default_factory=dict)
    """Weights by answer; they need not add up to 1, and none at all means 200 always.

    An answer is a status from 200 to 599; `drop` closes the connection without a word, `hang` never answers, and
    `truncate` closes it in the middle of the header of a 200. Only a 2xx takes the record, if its shape is good.
    """

    delay: float = 0.0
    """Seconds before the answer; a record that is taken is taken before them."""

    retry_after: str | None = None
    """The `Retry-After` of a drawn 4xx or 5xx, as a duration such as `5s`; sent as whole seconds, rounded up."""

    def __post_init__(self) -> None:
        """Refuse an impossible behaviour, and copy the answers so that nobody changes them later."""
        for answer, weight in self.answers.items():
            if answer not in WITHOUT_ANSWER and not _STATUS.fullmatch(answer):
                raise SettingsError(f"answers: {answer!r} is no status from 200 to 599, nor drop, hang or truncate")
            if not _is_number(weight) or weight < 0:
                raise SettingsError(f"answers: the weight of {answer} is {weight!r}; expected a number, zero or more")
        total = sum(self.answers.values())
        if self.answers and not 0 < total < math.inf:
            raise SettingsError(f"answers: the weights add up to {total}; expected one at least to be over zero")
        if not _is_number(self.delay) or self.delay < 0:
            raise SettingsError(f"delay: {self.delay!r} is not a number of seconds, zero or more")
        if self.retry_after is not None:
            _seconds("retry_after", self.retry_after)
        object.__setattr__(self, "answers", MappingProxyType(dict(self.answers) or {"200": 1.0}))

    @classmethod
    def from_json(cls, value: object) -> "Behaviour":
        """Read the JSON form.

        Args:
            value: parsed JSON; a key that is missing gets its default.

        Raises:
            SettingsError: the message names the key and a valid form.
        """
        if not isinstance(value, dict):
            raise SettingsError("a behaviour is a JSON object with answers, delay and retry_after, each optional")
        if unknown := sorted(value.keys() - _KEYS):
            raise SettingsError(f"unknown key {', '.join(unknown)}; the keys are answers, delay and retry_after")
        answers = value.get("answers", {})
        if not isinstance(answers, dict):
            raise SettingsError('answers: expected an object of weights, such as {"200": 0.9, "503": 0.1}')
        retry_after = value.get("retry_after")
        if retry_after is not None and not isinstance(retry_after, str):
            raise SettingsError(f"retry_after: {retry_after!r} is not a duration in quotes, such as 5s")
        return cls(answers, _seconds("delay", value.get("delay", 0)), retry_after)

    def as_json(self) -> dict[str, Any]:
        """Give the JSON value that `from_json` reads back."""
        return {
            "answers": dict(self.answers),
            "delay": format_duration(self.delay),
            "retry_after": self.retry_after,
        }

    @property
    def retry_after_seconds(self) -> int | None:
        """The `Retry-After` in whole seconds; None for no such header."""
        return None if self.retry_after is None else math.ceil(_seconds("retry_after", self.retry_after))

    def draw(self, random: Random) -> str:
        """Draw one answer by its weight."""
        if len(self.answers) == 1:
            return next(iter(self.answers))
        return random.choices(list(self.answers), list(self.answers.values()))[0]


def _is_number(value: object) -> bool:
    """Return True for a finite number; JSON and callers may hold other values in its place."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _seconds(name: str, value: object) -> float:
    """Read a duration such as `50ms`; 0 may also be a number, because its unit does not matter."""
    try:
        return parse_duration(value if isinstance(value, str) else repr(value))
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from error
