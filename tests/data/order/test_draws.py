"""Draws and permutations follow from their key alone."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import draws


@given(st.integers(1, 50), st.lists(st.integers(0, 9), min_size=1, max_size=3))
def test_draws_are_those_of_a_philox_made_for_the_key(count: int, key: list[int]) -> None:
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    expected = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    assert draws.raw(count, tuple(key)).tolist() == expected.tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 511, 512, 513, 5000, 300_000])
def test_a_permutation_is_the_stable_order_of_its_draws(count: int) -> None:
    expected = np.argsort(draws.raw(count, ("k", count)), kind="stable")
    assert draws.permutation(count, ("k", count)).tolist() == expected.tolist()


@given(numbers=st.lists(st.integers(0, 40) | st.integers(2**64 - 40, 2**64 - 1), max_size=60))
def test_draws_that_differ_in_their_low_bits_only_or_not_at_all_are_ordered_stably(numbers: list[int]) -> None:
    drawn = np.array(numbers, np.uint64)
    assert draws.stable_order(drawn).tolist() == np.argsort(drawn, kind="stable").tolist()
