"""A bound on the answers that callers have not read: their bytes, in all and for each caller."""

from collections import Counter


class AnswerBudget:
    """Counts answers until they have left.

    A caller that holds no bytes gets its answer whatever others hold, so that they cannot shut it out.

    Args:
        most: bytes of all callers.
        share: bytes of one caller.
    """

    def __init__(self, most: int, share: int) -> None:
        self._most = most
        self._share = share
        self._bytes_of: Counter[str] = Counter()
        self.bytes = 0
        """Of all callers."""
        self.number = 0
        """Of all callers' answers."""
        self.number_of: Counter[str] = Counter()
        """By caller that has a name."""

    def take(self, owner: str, size: int) -> bool:
        """Count an answer of `size` bytes, which the owner has to `give_back`; returns False where there is no room."""
        if size:
            held = self._bytes_of[owner]
            if held and (held + size > self._share or self.bytes + size > self._most):
                return False
            self._bytes_of[owner] = held + size
            self.bytes += size
        self.number += 1
        if owner:
            self.number_of[owner] += 1
        return True

    def give_back(self, owner: str, size: int) -> None:
        """Count an answer no more."""
        self.number -= 1
        if owner:
            _lower(self.number_of, owner, 1)
        if size:
            self.bytes -= size
            _lower(self._bytes_of, owner, size)


def _lower(counter: Counter[str], key: str, by: int) -> None:
    counter[key] -= by
    if not counter[key]:
        del counter[key]
