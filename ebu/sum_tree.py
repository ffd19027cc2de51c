"""Numbers that can be drawn in proportion to their size."""

import numpy as np


class SumTree:
    """Non-negative float64 numbers in the leaves of a binary tree, in each node their sum.

    Setting and finding k leaves costs k log2 of their number. A node is always the sum of its two
    children as they stand, so the tree is a function of its leaves, bit for bit, in whatever order
    they were set.
    """

    def __init__(self, num_leaves: int) -> None:
        self.num_leaves = num_leaves
        self._levels = max(0, num_leaves - 1).bit_length()
        self._first = 1 << self._levels
        # Node i has the children 2 i and 2 i + 1; the root is node 1.
        self._nodes = np.zeros(2 * self._first)

    @property
    def total(self) -> float:
        """The sum of all leaves, as the tree adds them."""
        return float(self._nodes[1])

    @property
    def leaves(self) -> np.ndarray:
        """All leaves, (num_leaves,) float64; a view."""
        return self._nodes[self._first : self._first + self.num_leaves]

    def __getitem__(self, leaves: np.ndarray) -> np.ndarray:
        """The numbers of these leaves, float64 in the shape of `leaves`."""
        numbers: np.ndarray = self._nodes[self._first + leaves]
        return numbers

    def set(self, leaves: np.ndarray, values: np.ndarray | float) -> None:
        """Give these leaves, (k,) int64, new values, (k,) or one for all; of doubles the last."""
        nodes = self._first + leaves
        self._nodes[nodes] = values
        for _ in range(self._levels):
            nodes = nodes >> 1
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def find(self, sums: np.ndarray) -> np.ndarray:
        """The leaf, (k,) int64, in which each of these partial sums in [0, total) lies.

        Never a leaf of 0, also where rounding would lead to one. The total must be above 0.
        """
        nodes, rest = np.ones(len(sums), np.int64), sums
        for _ in range(self._levels):
            nodes = 2 * nodes
            left = self._nodes[nodes]
            right = (rest >= left) & (self._nodes[nodes + 1] > 0)
            rest = rest - left * right
            nodes += right
        return nodes - self._first

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Leaves, (count,) int64, each with the probability leaf / total, one of each stratum.

        The total is cut into `count` equal ranges, and in each of them one sum is drawn uniformly
        (Schaul et al. 2016, appendix B.2.1).
        """
        return self.find((np.arange(count) + rng.random(count)) * (self.total / count))
