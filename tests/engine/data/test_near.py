"""Groups of nearly equal rows, found on whole columns, are those that comparing row by row finds."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from qlora_engine.data import near


def one_by_one(keys: Sequence[int], loose: Sequence[int], minima: np.ndarray) -> list[int]:
    """The least row of each row's group."""
    found = list(range(len(keys)))

    def join(row: int, other: int) -> None:
        low, high = sorted((found[row], found[other]))
        found[:] = [low if group == high else group for group in found]

    def join_equal(values: Sequence[int]) -> None:
        first: dict[int, int] = {}
        for row, value in enumerate(values):
            join(row, first.setdefault(value, row))

    join_equal(loose)
    for start in range(0, near.MINIMA, near.BAND):
        buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row in np.flatnonzero(minima.any(axis=1)).tolist():
            buckets[tuple(minima[row, start : start + near.BAND].tolist())].append(row)
        for head, *others in buckets.values():
            for row in others:
                if (minima[row] == minima[head]).sum() >= near.ALIKE:
                    join(row, head)
    sizes = Counter(found)
    largest = max(near.LARGEST, int(near.LARGEST_SHARE * len(keys)))
    found[:] = [row if sizes[group] > largest else group for row, group in enumerate(found)]
    join_equal(keys)
    return found


@pytest.mark.parametrize("compared_at_once", [3, near.COMPARED_ROWS])
def test_as_one_by_one(compared_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "COMPARED_ROWS", compared_at_once)
    rng = np.random.default_rng(5)
    joined = split_up = 0
    for case in range(300):
        rows, kinds = int(rng.integers(0, 70)), int(rng.integers(1, 60))
        keys = rng.integers(0, kinds, rows) if case % 2 else rng.permutation(rows)
        loose = rng.integers(0, 2 * kinds, rows) if case % 2 else keys
        minima = rng.integers(1, 5, (kinds, near.MINIMA))[rng.integers(0, kinds, rows)].astype(np.uint32)
        is_other = rng.random(minima.shape) < rng.choice([0, 0.03, 0.1])
        minima[is_other] = rng.integers(1, 9, int(is_other.sum()))
        minima[rng.random(rows) < 0.1] = 0
        found = near.groups(keys.astype(np.uint64), loose.astype(np.uint64), minima).tolist()

        assert found == one_by_one(keys.tolist(), loose.tolist(), minima)
        joined += len(set(found)) < rows
        split_up += len(set(found)) == rows > near.LARGEST
    assert joined > 100
    assert split_up > 0


def test_many_copies_take_no_loop() -> None:
    """A hundred thousand rows, each there twice: a second of processor time, where a loop over rows takes several."""
    rng = np.random.default_rng(1)
    half = 50_000
    keys = np.tile(rng.integers(0, 2**63, half).astype(np.uint64), 2)
    minima = np.tile(rng.integers(1, 2**32, (half, near.MINIMA), dtype=np.uint32), (2, 1))
    began = time.process_time()
    found = near.groups(keys, keys, minima)

    assert found.tolist() == [*range(half), *range(half)]
    assert time.process_time() - began < 1.0
