"""Decoded blocks that stay in memory for the windows to come."""


class Cache:
    """The blocks that a format's library keeps, for all cases of a process. This one is of libraries that keep none."""

    def size(self, blocks: int) -> int:
        """Bytes that the cache may come to where blocks of so many bytes should stay."""
        return blocks

    def grow(self, blocks: int) -> None:
        """Let blocks of so many bytes stay from now on, as far as the cache may grow."""

    def notes(self, blocks: int) -> list[str]:
        """What to say of a case of which blocks of so many bytes should stay, and cannot."""
        del blocks
        return []
