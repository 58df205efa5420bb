"""How many threads share what is decoded at one go: more where it has been waited for."""

from dataclasses import dataclass

LATE = 8
"""Windows, or stretches of them, of one case in a row that have been waited for, before more threads decode."""


@dataclass
class Decoders:
    """A count that grows to where reading keeps up, and is kept for the cases that come after."""

    count: int
    most: int
    _late: int = 0

    def begin(self) -> None:
        """Another case: the model waits for the first tiles of each."""
        self._late = 0

    def note(self, waited: bool) -> None:
        """Whether the model had no tile left when the next one came."""
        self._late = self._late + 1 if waited else 0
        if self._late > LATE and self.count < self.most:
            self.count, self._late = min(2 * self.count, self.most), 0
