from __future__ import annotations

import numpy as np
import pytest

from clusterer.fits.lsh import (
    BITS,
    LEAST_THRESHOLD,
    Rows,
    duplicate_groups,
    plan_lsh,
    recall,
    same_side,
    verified_groups,
)
from shoal.errors import InvalidArgument
from shoal.vectors import Vectors

DIM = 64


def unit(vectors: Vectors) -> Vectors:
    """Float32, of unit length."""
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled.astype(np.float32)


def scattered(n: int, seed: int = 0) -> Vectors:
    """Unlike vectors (n, DIM) with a mean as long as that of real images, 0.55."""
    spread = np.random.default_rng(seed).standard_normal((n, DIM)) / np.sqrt(DIM)
    return unit(0.55 * np.eye(DIM)[0] + 0.83 * spread)


def turned(vectors: Vectors, cosine: float, seed: int = 1) -> Vectors:
    """Each of ``vectors``, turned in a random direction until their cosine is ``cosine``."""
    away = np.random.default_rng(seed).standard_normal(vectors.shape)
    away -= (away * vectors).sum(axis=1, keepdims=True) * vectors
    return unit(cosine * vectors + np.sqrt(1 - cosine**2) * unit(away))


def all_pairs(vectors: Vectors, threshold: float) -> Rows:
    """Every pair (M, 2) with a cosine of ``threshold`` or more, by brute force."""
    rows = np.argwhere(np.triu(vectors @ vectors.T >= threshold, k=1))
    return rows.astype(np.int64)


def share_found(wanted: Rows, found: Rows) -> float:
    known = set(map(tuple, found.tolist()))
    return float(np.mean([tuple(pair) in known for pair in wanted.tolist()]))


@pytest.mark.parametrize("threshold", [0.93, 0.95, 0.98, 0.995])
def test_duplicates_recall_at_the_threshold_is_99_percent(threshold: float) -> None:
    """Of pairs a hair above the threshold, 99 of 100 are candidates and share a group."""
    base = scattered(2000)
    vectors = np.concatenate([base, turned(base, threshold + 1e-4)])
    wanted = all_pairs(vectors, threshold)
    assert len(wanted) >= 2000
    lsh = plan_lsh(vectors.mean(axis=0), threshold=threshold, seed=0)
    assert share_found(wanted, lsh.candidates(lsh.signatures(vectors))) >= 0.99
    groups = duplicate_groups(vectors, threshold=threshold, seed=0)
    assert np.mean(groups[wanted[:, 0]] == groups[wanted[:, 1]]) >= 0.98


def test_duplicates_are_near_their_representative() -> None:
    """No member is below the threshold; a representative is its own, and has the most members."""
    base = scattered(300)
    vectors = np.concatenate([base] + [turned(base, 0.97, seed) for seed in range(1, 6)])
    groups = duplicate_groups(vectors, threshold=0.93, seed=0)
    assert (np.einsum("ij,ij->i", vectors, vectors[groups]) >= 0.93 - 1e-6).all()
    np.testing.assert_array_equal(groups[groups], groups)
    assert groups.dtype == np.int32
    assert len(np.unique(groups)) == pytest.approx(300, rel=0.02)


def test_duplicates_do_not_chain() -> None:
    """Vectors in a row, each near the next, do not make one group of unlike ends."""
    angles = np.arange(12) * np.arccos(0.97)
    vectors = np.zeros((12, DIM), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    groups = duplicate_groups(vectors, threshold=0.96, seed=0)
    assert np.bincount(groups).max() == 3
    assert (np.abs(groups - np.arange(12)) <= 1).all()


def test_duplicates_same_side_is_the_share_of_equal_bits() -> None:
    """As many bits of two signatures are equal as the formula says."""
    base = scattered(500)
    base = base[np.abs(np.linalg.norm(base - base.mean(axis=0), axis=1) - 0.83) < 0.03]
    lsh = plan_lsh(base.mean(axis=0), threshold=0.95, seed=0)
    differing = lsh.signatures(base) ^ lsh.signatures(turned(base, 0.95))
    equal = 1 - np.bitwise_count(differing).sum() / (len(base) * BITS)
    assert equal == pytest.approx(same_side(0.95, 0.83), abs=0.01)


def test_duplicates_plan_takes_the_longest_keys_that_meet_the_recall() -> None:
    """The higher the threshold, the longer the keys and the fewer the tables."""
    mean = scattered(1000).mean(axis=0)
    plans = [plan_lsh(mean, threshold=t, seed=0) for t in (0.9, 0.95, 0.98, 0.99)]
    lengths = [plan.key_bits for plan in plans]
    assert lengths == sorted(set(lengths))
    assert all(plan.tables * plan.key_bits <= BITS for plan in plans)
    assert recall(0.9, 18) == pytest.approx(1 - (1 - 0.9**18) ** 28)


def test_duplicates_signatures_take_64_bytes_in_any_blocks() -> None:
    """A streamed pass keeps 64 bytes per vector, those of one pass over all vectors."""
    vectors = scattered(5000)
    lsh = plan_lsh(vectors.mean(axis=0), threshold=0.95, seed=0)
    whole = lsh.signatures(vectors)
    assert whole.nbytes == len(vectors) * 64
    assert whole.dtype == np.uint64
    blocks = [lsh.signatures(vectors[at : at + 300]) for at in range(0, 5000, 300)]
    # A matrix product may round otherwise in blocks of another size.
    assert np.bitwise_count(np.concatenate(blocks) ^ whole).sum() <= 20


def test_duplicates_streamed_are_those_in_memory() -> None:
    """Fetched in bounded chunks, ascending and without repeats, the groups are the same."""
    base = scattered(6000)
    vectors = np.concatenate([base, turned(base, 0.99)])
    lsh = plan_lsh(vectors.mean(axis=0), threshold=0.98, seed=3)
    chunks: list[Rows] = []

    def fetch(rows: Rows) -> Vectors:
        chunks.append(rows)
        return vectors[rows]

    pairs = lsh.candidates(lsh.signatures(vectors))
    streamed = verified_groups(pairs, fetch, n=len(vectors), threshold=0.98)
    in_memory = duplicate_groups(vectors, threshold=0.98, seed=3)
    np.testing.assert_array_equal(streamed, in_memory)
    assert len(chunks) > 1
    assert all(len(rows) <= 8192 and (np.diff(rows) > 0).all() for rows in chunks)


def test_duplicates_identical_vectors_are_one_group_by_few_pairs() -> None:
    """20,000 times the same vector: one group around the first, by one pair per vector."""
    vectors = np.repeat(scattered(1), 20_000, axis=0)
    lsh = plan_lsh(vectors.mean(axis=0), threshold=0.95, seed=0)
    pairs = lsh.candidates(lsh.signatures(vectors))
    groups = verified_groups(pairs, vectors.__getitem__, n=len(vectors), threshold=0.95)
    assert not groups.any()
    assert len(pairs) == len(vectors) - 1


@pytest.mark.parametrize("cosine", [0.999, 0.94])
def test_duplicates_candidates_of_a_giant_bucket_are_bounded(cosine: float) -> None:
    """Almost alike vectors by the thousand: at most 8 pairs each, one group if near enough."""
    blank = turned(np.repeat(scattered(1), 5000, axis=0), np.sqrt(cosine))
    vectors = np.concatenate([scattered(5000, seed=9), blank])
    lsh = plan_lsh(vectors.mean(axis=0), threshold=0.95, seed=0)
    pairs = lsh.candidates(lsh.signatures(vectors))
    assert len(pairs) <= 8 * len(vectors)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    groups = verified_groups(pairs, vectors.__getitem__, n=len(vectors), threshold=0.95)
    assert (np.einsum("ij,ij->i", vectors, vectors[groups]) >= 0.95 - 1e-6).all()
    if cosine > 0.95:
        assert len(np.unique(groups[5000:])) == 1


def test_duplicates_without_any_each_row_is_its_own() -> None:
    """Unlike vectors are in no group."""
    groups = duplicate_groups(scattered(3000), threshold=0.95, seed=0)
    np.testing.assert_array_equal(groups, np.arange(3000))


def test_duplicates_follow_from_the_seed() -> None:
    """The same seed draws the same planes and finds the same; another one draws others."""
    base = scattered(500)
    vectors = np.concatenate([base, turned(base, 0.95)])
    plans = [plan_lsh(vectors.mean(axis=0), threshold=0.95, seed=seed) for seed in (4, 4, 5)]
    first, second, other = (plan.signatures(vectors) for plan in plans)
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    runs = [duplicate_groups(vectors, threshold=0.95, seed=4) for _ in range(2)]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_duplicates_of_hardly_any_vectors(n: int) -> None:
    """None, one alone and two alike are fine."""
    vectors = np.repeat(scattered(1), n, axis=0)
    assert duplicate_groups(vectors, threshold=0.95, seed=0).tolist() == [0] * n
    lsh = plan_lsh(np.zeros(DIM, np.float32), threshold=0.95, seed=0)
    assert lsh.candidates(lsh.signatures(vectors)).shape == (n // 2, 2)


@pytest.mark.parametrize("threshold", [LEAST_THRESHOLD - 0.01, 1.01, float("nan")])
def test_duplicates_threshold_out_of_range_is_refused(threshold: float) -> None:
    """Below the least threshold there would be too many candidates, above 1 none."""
    with pytest.raises(InvalidArgument, match="threshold: expected"):
        duplicate_groups(scattered(2), threshold=threshold, seed=0)
