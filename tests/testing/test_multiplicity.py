"""Families of cells: known sizes, the powers the design promises, and procedures against twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from specbp.testing import multiplicity
from specbp.testing.outcome import POWER

SEED = 20260902
CELLS = 300
unit = st.floats(0, 1)
scores = st.floats(-30, 30)
p_lists = st.lists(unit, min_size=1, max_size=12)
z_lists = st.lists(scores, min_size=1, max_size=12)


def rate(z: np.ndarray, alpha: float) -> float:
    """Share of rows that `combined` rejects."""
    return float(np.mean([multiplicity.combined(row, alpha).rejected for row in z]))


def normal(repeats: int, cells: int = CELLS, salt: int = 0) -> np.ndarray:
    return np.random.default_rng([SEED, salt]).standard_normal((repeats, cells))


def naive_holm(p: list[float]) -> list[float]:
    """Level by level: the smallest α at which the step-down procedure still rejects cell i."""
    levels = sorted({min(k * v, 1.0) for v in p for k in range(1, len(p) + 1)})

    def rejected(alpha: float) -> set[int]:
        left, found = set(range(len(p))), set()
        while left:
            i = min(left, key=lambda j: (p[j], j))
            if len(left) * p[i] > alpha and alpha < 1:
                break
            found.add(i)
            left.remove(i)
        return found

    return [min(a for a in [*levels, 1.0] if i in rejected(a)) for i in range(len(p))]


def naive_step_up(p: list[float], q: float) -> list[bool]:
    K = len(p)
    largest = max(
        (k for k in range(1, K + 1) if sorted(p)[k - 1] <= q * k / K),
        default=0,
    )
    cut = sorted(p)[largest - 1] if largest else -1.0
    return [v <= cut for v in p]


# Procedures ---------------------------------------------------------------------------------------


@given(p_lists)
def test_holm_is_the_step_down_procedure(p):
    np.testing.assert_array_equal(multiplicity.holm(p), naive_holm(p))


@given(p_lists)
def test_holm_lies_between_the_raw_value_and_bonferroni(p):
    adjusted = multiplicity.holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= 1).all()
    assert adjusted.min() == min(1.0, len(p) * min(p))
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


@given(p_lists, st.data())
def test_holm_grows_with_every_p(p, data):
    i = data.draw(st.integers(0, len(p) - 1))
    larger = [*p[:i], data.draw(st.floats(p[i], 1)), *p[i + 1 :]]
    assert (multiplicity.holm(larger) >= multiplicity.holm(p)).all()


@given(z_lists, st.randoms(use_true_random=False))
def test_the_order_of_the_cells_does_not_matter(z, random):
    order = list(range(len(z)))
    random.shuffle(order)
    p = 2 * stats.norm.sf(np.abs(z))
    np.testing.assert_array_equal(multiplicity.holm(p[order]), multiplicity.holm(p)[order])
    one = multiplicity.combined(z, 0.05)
    other = multiplicity.combined(np.take(z, order), 0.05)
    np.testing.assert_allclose(other[:3], one[:3], rtol=1e-9, atol=1e-300)
    assert abs(z[one.worst]) == abs(z[order[other.worst]]) or p[one.worst] == p.min()
    marks = multiplicity.benjamini_hochberg(p, 0.1)
    np.testing.assert_array_equal(multiplicity.benjamini_hochberg(p[order], 0.1), marks[order])


@given(z_lists)
def test_the_sign_of_all_scores_does_not_matter(z):
    one, other = (multiplicity.combined(s * np.array(z), 0.05) for s in (1, -1))
    assert one == other


@given(z_lists, st.floats(1e-6, 0.5))
def test_the_family_rejects_when_one_of_its_tests_does_at_a_third_of_the_level(z, alpha):
    family = multiplicity.combined(z, alpha)
    assert 0 <= family.p <= 1
    assert family.rejected == (family.p <= alpha)
    assert family.rejected == (3 * min(family.holm, family.stouffer, family.spread) <= alpha)


@given(p_lists, st.floats(0.001, 0.5))
def test_benjamini_hochberg_is_the_step_up_procedure(p, q):
    assert multiplicity.benjamini_hochberg(p, q).tolist() == naive_step_up(p, q)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.sampled_from([0.05, 0.1, 0.5]))
def test_e_benjamini_hochberg_rejects_the_largest(e, q):
    K, marks = len(e), multiplicity.e_benjamini_hochberg(e, q)
    descending = sorted(e, reverse=True)
    # A hair of slack: 1/e and K/q are rounded.
    k = max((k for k in range(1, K + 1) if k * descending[k - 1] >= K / q * (1 - 1e-12)), default=0)
    assert marks.tolist() == [k > 0 and v >= descending[k - 1] for v in e]


def test_an_infinite_e_value_is_marked_and_nothing_else():
    assert multiplicity.e_benjamini_hochberg([0.0, np.inf, 1.0], 0.05).tolist() == [
        False,
        True,
        False,
    ]


def test_given_p_values_are_those_of_the_cells():
    family = multiplicity.combined([0.1, 5.0, 0.2], 0.01, p=[1e-9, 0.5, 0.5])
    assert family.worst == 0
    assert family.holm == pytest.approx(3e-9)


@pytest.mark.parametrize("bad", [[], [[0.5]], [-0.1], [1.1], [np.nan]])
def test_what_is_no_p_value_is_refused(bad):
    for call in (multiplicity.holm, lambda p: multiplicity.benjamini_hochberg(p, 0.05)):
        with pytest.raises(ValueError, match="p-values"):
            call(bad)


@pytest.mark.parametrize("bad", [[], [np.nan], [np.inf], 3.0])
def test_what_is_no_score_is_refused(bad):
    for call in (multiplicity.stouffer, multiplicity.spread):
        with pytest.raises(ValueError, match="[Ss]cores"):
            call(bad)


def test_levels_counts_and_lengths_are_checked():
    with pytest.raises(ValueError, match="strictly between"):
        multiplicity.combined([0.0], 0.0)
    with pytest.raises(ValueError, match="at least one cell"):
        multiplicity.detectable_shift(0, 0.01)
    with pytest.raises(ValueError, match="2 scores, 1 p-values"):
        multiplicity.combined([0.0, 1.0], 0.01, p=[0.5])
    with pytest.raises(ValueError, match="e-values are"):
        multiplicity.e_benjamini_hochberg([-1.0], 0.05)


# Sizes and powers ---------------------------------------------------------------------------------


def test_false_alarms_come_at_most_at_the_stated_rate_and_not_much_rarer():
    found = rate(normal(4000), 0.05)
    # Bonferroni over three tests: below 0.05; each of them near its third, and nearly independent.
    # 4000 trials: a rate of 0.05 exceeds 0.0638 with probability 4e-5.
    assert 0.03 < found < 0.0638


@pytest.mark.parametrize("part", ["holm", "stouffer", "spread"])
def test_every_part_has_its_size(part):
    p = np.array([getattr(multiplicity.combined(z, 0.5), part) for z in normal(4000)])
    # Stouffer and spread are exact, Holm is 1 − (1 − α/K)^K: all within four standard errors.
    assert abs(np.mean(p < 0.05) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000) + 0.002


# 64 replicates: a shift of δ standard deviations of one moves a score by 8 δ.
SCENARIOS = {
    "one cell 0.5": 4.0 * (np.arange(CELLS) == 17),
    "one cell 1.0": 8.0 * (np.arange(CELLS) == 17),
    "all +0.05": np.full(CELLS, 0.4),
    "all +0.1": np.full(CELLS, 0.8),
    "either sign 0.2": 1.6 * (-1.0) ** np.arange(CELLS),
    "a fifth 0.3": 2.4 * (np.arange(CELLS) % 5 == 0),
}


def exact_powers(shift: np.ndarray, alpha: float) -> list[float]:
    """Power of (Holm, Stouffer, spread) alone: normal scores of unit variance and these means."""
    cell, total = stats.norm.isf(alpha / 2 / CELLS), shift.sum() / CELLS**0.5
    seen = stats.norm.sf(cell - shift) + stats.norm.sf(cell + shift)
    critical = stats.norm.isf(alpha / 2)
    return [
        1 - np.prod(1 - seen),
        stats.norm.sf(critical - total) + stats.norm.sf(critical + total),
        stats.ncx2.sf(stats.chi2.isf(alpha, CELLS), CELLS, shift @ shift),
    ]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_part_has_its_power(scenario):
    alpha, shift = 1e-3, SCENARIOS[scenario]
    families = [multiplicity.combined(z + shift, alpha) for z in normal(400, salt=2)]
    found = np.mean([[part <= alpha for part in family[:3]] for family in families], axis=0)
    powers = np.array(exact_powers(shift, alpha))
    error = np.sqrt(np.maximum(powers * (1 - powers), 1e-3) / 400)
    assert (np.abs(found - powers) < 4 * error).all()
    third = exact_powers(shift, alpha / 3)
    assert np.mean([family.rejected for family in families]) > max(third) - 4 * error.max()


@pytest.mark.parametrize(
    ("scenario", "holm", "stouffer", "spread"),
    [
        ("one cell 1.0", 1, 0, None),
        ("all +0.05", 0, 1, 0),
        ("all +0.1", 0, 1, 1),
        ("either sign 0.2", None, 0, 1),
        ("a fifth 0.3", None, 1, 1),
    ],
)
def test_every_part_sees_what_the_others_miss(scenario, holm, stouffer, spread):
    powers = exact_powers(SCENARIOS[scenario], 1e-3 / 3)
    for power, seen in zip(powers, (holm, stouffer, spread), strict=True):
        assert seen is None or (power > 0.95 if seen else power < 0.1)


def test_a_diffuse_fault_is_missed_cell_by_cell_and_seen_together():
    shift = SCENARIOS["all +0.05"]
    families = [multiplicity.combined(z + shift, 1e-3) for z in normal(200, salt=2)]
    assert np.mean([f.holm <= 1e-3 for f in families]) < 0.05
    assert all(f.rejected for f in families)


@pytest.mark.parametrize("K", [1, 30, 300])
def test_the_detectable_shifts_are_detected_with_the_stated_power(K):
    alpha, repeats = 1e-3, 2000
    one = np.zeros(K)
    one[0] = multiplicity.detectable_cell(K, alpha)
    scatter = multiplicity.detectable_scatter(K, alpha) * (-1) ** np.arange(K)
    noise = normal(repeats, K, salt=3)
    shifts = [multiplicity.detectable_shift(K, alpha), one, scatter]
    parts = [multiplicity.stouffer, lambda z: multiplicity.holm(2 * stats.norm.sf(abs(z))).min()]
    for shift, part in zip(shifts, [*parts, multiplicity.spread], strict=True):
        alone = np.mean([part(z + shift) <= alpha / 3 for z in noise])
        assert abs(alone - POWER) < 0.025  # five standard errors
        assert rate(noise + shift, alpha) >= alone


def test_false_discoveries_are_rare_among_the_marks():
    z = normal(2000, 50, salt=4)
    z[:, :10] += 3.5
    p = 2 * stats.norm.sf(np.abs(z))
    e = np.cosh(3 * z) * np.exp(-9 / 2)  # one e-value per cell, normal mixture of two points
    for marks in (
        np.array([multiplicity.benjamini_hochberg(row, 0.1) for row in p]),
        np.array([multiplicity.e_benjamini_hochberg(row, 0.1) for row in e]),
    ):
        false = marks[:, 10:].sum(1) / np.maximum(marks.sum(1), 1)
        assert false.mean() < 0.1
        assert marks[:, :10].mean() > 0.2
    # Benjamini–Hochberg is exact for independent cells: q times the share of true nulls.
    false = np.array([multiplicity.benjamini_hochberg(row, 0.1) for row in p])
    share = false[:, 10:].sum(1) / np.maximum(false.sum(1), 1)
    assert abs(share.mean() - 0.08) < 0.01
