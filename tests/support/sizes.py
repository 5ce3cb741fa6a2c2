"""Sizes of the tests that show more the longer they run: short in `make test`, full in `make test-all`."""

import os
from typing import TypeVar

Size = TypeVar("Size")

IS_FULL = os.environ.get("TEST_SIZE") == "full"


def sized(short: Size, full: Size) -> Size:
    """The full size where TEST_SIZE=full, as `make test-all` sets it, and the short one otherwise."""
    return full if IS_FULL else short
