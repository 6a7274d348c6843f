"""BlockPool: which blocks of the key/value cache are free. Bookkeeping over ints, no arrays."""

from __future__ import annotations

__all__ = ["BlockPool"]


class BlockPool:
    """Hands out block numbers from 0 to `n_blocks` - 1.

    The block freed last is given first: its memory is already there and warm.
    """

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self._free = list(range(n_blocks - 1, -1, -1))
        self._taken = [False] * n_blocks

    @property
    def n_free(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    def can_allocate(self, n: int) -> bool:
        """Whether `n` blocks are free."""
        return n <= len(self._free)

    def allocate(self, n: int) -> list[int]:
        """Take `n` free blocks; ask `can_allocate` first.

        Raises:
            ValueError: fewer are free.
        """
        if not self.can_allocate(n):
            raise ValueError(f"block pool: {n} blocks wanted, {len(self._free)} free")
        blocks = [self._free.pop() for _ in range(n)]
        for block in blocks:
            self._taken[block] = True
        return blocks

    def free(self, blocks: list[int]) -> None:
        """Give blocks back.

        Raises:
            ValueError: a block that is not taken; the others stay taken as well.
        """
        if len(set(blocks)) != len(blocks) or not all(self._taken[block] for block in blocks):
            raise ValueError(f"block pool: {blocks} are not all taken")
        for block in reversed(blocks):
            self._taken[block] = False
            self._free.append(block)
