"""What is unusual about the pixels of a case."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """Something unusual about the pixels of a case."""

    text: str
    """The observation, the expectation of the contract, and the mend."""
    far: bool = False
    """Whether labels would be meaningless."""
