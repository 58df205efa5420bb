"""The cache of decoded blocks, which later windows use again."""


class Cache:
    """The block cache of a format's library, shared by all cases of a process; this base class keeps nothing."""

    def size(self, blocks: int) -> int:
        """Largest size of the cache in bytes when it should keep ``blocks`` bytes of blocks."""
        return blocks

    def grow(self, blocks: int) -> None:
        """Grow the cache to keep ``blocks`` bytes of blocks from now on, as far as its limit allows."""

    def notes(self, blocks: int) -> list[str]:
        """Notes on a case that needs ``blocks`` bytes of blocks in the cache, if the cache cannot keep them."""
        del blocks
        return []
