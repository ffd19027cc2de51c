"""The sum tree: by hand, against plain sums, and its draws."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ebu.sum_tree import SumTree

# A test of frequencies with this level fails a correct tree once in a million seeds.
ERROR_RATE = 1e-6


def tree_of(values: list[float] | np.ndarray) -> SumTree:
    tree = SumTree(len(values))
    tree.set(np.arange(len(values)), np.array(values, dtype=np.float64))
    return tree


def test_sums_and_places_by_hand() -> None:
    tree = tree_of([1.0, 0.0, 3.0, 2.0, 4.0])
    assert tree.total == 10.0
    sums = np.array([0.0, 0.9, 1.0, 3.9, 4.0, 5.9, 6.0, 9.9])
    assert tree.find(sums).tolist() == [0, 0, 2, 2, 3, 3, 4, 4]
    tree.set(np.array([2, 0]), np.array([0.0, 5.0]))
    assert tree.total == 11.0
    assert tree.leaves.tolist() == [5.0, 0.0, 0.0, 2.0, 4.0]
    assert tree[np.array([4, 0, 1])].tolist() == [4.0, 5.0, 0.0]
    assert tree.find(np.array([4.9, 5.0, 7.0])).tolist() == [0, 3, 4]


@given(st.integers(1, 70), st.integers(0, 2**32 - 1), st.integers(1, 8))
@settings(deadline=None)
def test_a_tree_is_a_function_of_its_leaves_bit_for_bit(size: int, seed: int, changes: int) -> None:
    rng = np.random.default_rng(seed)
    tree, values = SumTree(size), np.zeros(size)
    for _ in range(changes):
        leaves = rng.integers(size, size=rng.integers(0, 20))
        # Of one leaf among them twice the last value counts.
        numbers = rng.random(len(leaves)) * 10.0 ** rng.integers(-8, 8, size=len(leaves))
        numbers[rng.random(len(leaves)) < 0.3] = 0.0
        for leaf, number in zip(leaves, numbers, strict=True):
            values[leaf] = number
        tree.set(leaves, numbers)
    assert np.array_equal(tree.leaves, values)
    again = tree_of(values)
    assert np.array_equal(again._nodes, tree._nodes)
    assert tree.total == pytest.approx(values.sum(), rel=1e-12)


@given(st.integers(1, 70), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_found_leaves_hold_the_sum_and_are_never_empty(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random(size) * 10.0 ** rng.integers(-12, 4, size=size)
    values[rng.random(size) < 0.5] = 0.0
    values[rng.integers(size)] = 1.0
    tree = tree_of(values)
    # Whatever rounding makes of the end of the range, the total included.
    sums = np.append(rng.random(50) * tree.total, [0.0, np.nextafter(tree.total, 0), tree.total])
    found = tree.find(sums)
    assert (values[found] > 0).all()
    before = np.concatenate([[0.0], np.cumsum(values)])
    slack = 1e-9 * tree.total
    assert (before[found] <= sums + slack).all()
    assert (sums <= before[found + 1] + slack).all()


def test_draws_follow_the_sizes() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(300) ** 3
    values[::7] = 0.0
    tree = tree_of(values)
    drawn = np.concatenate([tree.draw(rng, 1) for _ in range(20_000)])
    counts, positive = np.bincount(drawn, minlength=300), values > 0
    assert not counts[~positive].any()
    expected = len(drawn) * values[positive] / values.sum()
    grouped = np.add.reduceat(counts[positive], np.arange(0, positive.sum(), 10))
    expected = np.add.reduceat(expected, np.arange(0, positive.sum(), 10))
    assert scipy.stats.chisquare(grouped, expected).pvalue > ERROR_RATE


def test_strata_spread_a_draw() -> None:
    # 32 strata of leaves of the same size: one leaf in eight is drawn, each of another eight.
    tree = tree_of(np.ones(256))
    rng = np.random.default_rng(1)
    counts = np.zeros(256)
    for _ in range(400):
        drawn = tree.draw(rng, 32)
        assert (drawn // 8 == np.arange(32)).all()
        counts[drawn] += 1
    assert scipy.stats.chisquare(counts).pvalue > ERROR_RATE
