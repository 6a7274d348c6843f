"""BlockPool: which blocks of the key/value cache are free. Bookkeeping over ints, no arrays.

Attention reads a run of RUN_LEN neighboring blocks faster than blocks from anywhere. So a sequence
goes on behind its last block where it can, a long one begins a run of its own, and a short one
takes what is left of runs that others began.
"""

from __future__ import annotations

from starcoder.model.kv_cache import RUN_LEN

__all__ = ["BlockPool"]


class BlockPool:
    """Hands out block numbers from 0 to `n_blocks` - 1.

    What was freed last is given first: its memory is already there and warm.
    """

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self.n_free = n_blocks  # blocks that nobody holds
        # The free blocks of each run that has some, and the runs in the order in which they are
        # taken: whole ones, and those of which a part is free. Dicts keep order and forget fast.
        self._free = {
            run: set(range(run * RUN_LEN, min(n_blocks, (run + 1) * RUN_LEN)))
            for run in range(-(-n_blocks // RUN_LEN))
        }
        self._whole = dict.fromkeys(reversed(self._free))
        self._parts: dict[int, None] = {}

    def allocate(self, after: int | None = None, n_more: int = 0) -> int:
        """Take a free block.

        Args:
            after: the block of the positions before; the one behind it is best.
            n_more: how many blocks the sequence will want after this one, as far as is known.

        Raises:
            ValueError: none is free.
        """
        if not self.n_free:
            raise ValueError(f"block pool: all {self.n_blocks} blocks are taken")
        if after is not None and self.is_free(after + 1) and (after + 1) % RUN_LEN:
            return self._take(after + 1)
        first, then = self._parts, self._whole
        if n_more + 1 >= RUN_LEN // 2:
            first, then = then, first
        run = next(reversed(first), None)
        if run is None:
            run = next(reversed(then))
        return self._take(min(self._free[run]))

    def is_free(self, block: int) -> bool:
        """Whether a block is there and nobody holds it."""
        return block in self._free.get(block // RUN_LEN, ())

    def free(self, block: int) -> None:
        """Give a block back.

        Raises:
            ValueError: a block that is not taken.
        """
        if self.is_free(block) or not 0 <= block < self.n_blocks:
            raise ValueError(f"block pool: block {block} is not taken")
        run = block // RUN_LEN
        self._free.setdefault(run, set()).add(block)
        self.n_free += 1
        self._place(run)

    def _take(self, block: int) -> int:
        run = block // RUN_LEN
        self._free[run].remove(block)
        self.n_free -= 1
        self._place(run)
        return block

    def _place(self, run: int) -> None:
        """Put a run where its number of free blocks belongs, to be taken next."""
        self._whole.pop(run, None)
        self._parts.pop(run, None)
        n_free, n = len(self._free[run]), min(RUN_LEN, self.n_blocks - run * RUN_LEN)
        if n_free == n:
            self._whole[run] = None
        elif n_free:
            self._parts[run] = None
