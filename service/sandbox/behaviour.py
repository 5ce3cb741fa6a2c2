"""The behaviour of the sandbox: its answers and their shares, their delay and their `Retry-After`.

As JSON, every key optional: `{"answers": {"200": 0.7, "503": 0.2, "drop": 0.1}, "delay": "50ms", "retry_after": "5s"}`.
"""

import json
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


ROUNDING = 1e-9  # how far shares such as 0.1 and 0.2 may miss their sum


def behaviour_of(
    answers: str | None, shares: list[str] | None, delay: str = "0s", retry_after: str | None = None
) -> Behaviour:
    """The behaviour that options ask for.

    Args:
        answers: `--answers`: a JSON object of weights.
        shares: `--answer`, as often as it was given: `ANSWER=SHARE`; the rest, up to 1, is answered 200.
        delay: `--delay`.
        retry_after: `--retry-after`.

    Raises:
        SettingsError: the message names the option and a valid form.
    """
    if answers is not None and shares:
        raise SettingsError("--answers and --answer are both given; one of them is right")
    weights = _shares(shares) if shares else _weights(answers)
    option = "--answer" if shares else "--answers"
    _named(option, {"answers": weights})
    _named("--delay", {"delay": delay})
    _named("--retry-after", {"retry_after": retry_after})
    return Behaviour.from_json({"answers": weights, "delay": delay, "retry_after": retry_after})


def _named(option: str, part: dict[str, object]) -> None:
    """Check one part of a behaviour, and name the option in place of the part."""
    try:
        Behaviour.from_json(part)
    except SettingsError as error:
        raise SettingsError(f"{option}: {str(error).partition(': ')[2]}") from error


def _weights(text: str | None) -> object:
    if text is None:
        return {}
    try:
        weights = json.loads(text)
    except ValueError as error:
        raise SettingsError(f'--answers: is not JSON: {error}; {{"200": 0.7, "503": 0.3}} is right') from error
    if weights == {}:
        raise SettingsError('--answers: names no answer; {"200": 0.7, "503": 0.3} is right')
    return weights


def _shares(texts: list[str]) -> dict[str, float]:
    """Read `ANSWER=SHARE` options; the rest, up to 1, is answered 200."""
    shares: dict[str, float] = {}
    for text in texts:
        name, _, share = text.partition("=")
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise SettingsError(f"--answer: {text!r} is not ANSWER=SHARE, such as 503=0.2") from error
    total = sum(shares.values())
    if total > 1 + ROUNDING:
        raise SettingsError(f"--answer: the shares add up to {total:g}; at most 1 is right, such as 503=0.2")
    if (rest := 1 - total) > 0:
        shares.setdefault("200", rest)
    return shares
