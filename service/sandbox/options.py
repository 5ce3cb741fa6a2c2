"""The behaviour that the options of `sandbox` describe."""

import json

from service.errors import SettingsError
from service.sandbox.behaviour import Behaviour

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
