"""Several constraints of the sampler as one: what all of them allow, until one is over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starcoder.sampling.sampler import Constraint

__all__ = ["together"]


def together(constraints: Sequence[Constraint]) -> Constraint | None:
    """One constraint that stands for all of these, None for none."""
    return _Together(constraints) if len(constraints) > 1 else next(iter(constraints), None)


class _Together:
    def __init__(self, constraints: Sequence[Constraint]) -> None:
        self._constraints = constraints

    def allowed(self) -> NDArray[np.intp] | None:
        """The ids that all allow, ascending; None: every id."""
        both: NDArray[np.intp] | None = None
        for constraint in self._constraints:
            ids = constraint.allowed()
            if both is None:
                both = ids
            elif ids is not None:
                both = np.intersect1d(both, ids, assume_unique=True)
        return both

    def take(self, token: int) -> None:
        """Go on behind a token that was chosen."""
        for constraint in self._constraints:
            constraint.take(token)

    @property
    def is_over(self) -> bool:
        """Whether any of them ends the text here."""
        return any(constraint.is_over for constraint in self._constraints)

    @property
    def is_in_prompt(self) -> bool:
        """Whether any of them takes the last token for the prompt's."""
        return any(constraint.is_in_prompt for constraint in self._constraints)
