"""Shared, frozen and antithetic probes are found exactly, chance coincidences are allowed for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from specbp import gaussian, generator_for, hutchinson_trace, rademacher
from specbp.testing.outcome import FAIL, PASS, REPORTED
from specbp.testing.repeats import _chance_p, duplicate_checks, reproducibility_checks

AXES = ("seeds", "calls", "items")
SCOPES = ("across seeds", "across calls", "across items", "within one block")


def blocks(law=rademacher, n: int = 64) -> torch.Tensor:
    return law(n, 3, generator=generator_for("repeats", n), batch_shape=(4, 3, 2))


def found(probes: torch.Tensor) -> dict[str, str]:
    checks = duplicate_checks(probes, AXES)
    return {check.name.removeprefix("P2 duplicates "): check.verdict for check in checks}


@pytest.mark.parametrize("law", [rademacher, gaussian])
def test_fresh_probes_pass_in_every_scope(law):
    assert found(blocks(law)) == dict.fromkeys(SCOPES, PASS)


@pytest.mark.parametrize("law", [rademacher, gaussian])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("axis", "scope"), list(enumerate(SCOPES)))
def test_one_shared_probe_is_charged_to_its_scope(law, sign, axis, scope):
    x = blocks(law).movedim(-1, 3)  # (seeds, calls, items, probes, n)
    source, target = [0, 0, 0, 0], [0, 0, 0, 0]
    target[axis] = 1
    x[tuple(target)] = sign * x[tuple(source)]
    expected = dict.fromkeys(SCOPES, PASS) | {scope: FAIL}
    assert found(x.movedim(3, -1)) == expected


def test_a_pair_in_unequal_places_is_found_too():
    x = blocks()
    x[3, 2, 1, :, 0] = x[1, 0, 0, :, 2]
    assert found(x)["across seeds"] == FAIL


def test_signed_zeros_are_equal():
    x = torch.zeros(2, 3, 1, dtype=torch.float64)
    x[0, 0], x[1, 0] = 1.0, -1.0
    x[1, 1:] = -0.0
    assert duplicate_checks(x)[0].verdict == FAIL


def test_the_number_of_pairs_is_counted():
    x = blocks()
    x[1] = x[0]
    check = duplicate_checks(x, AXES)[0]
    # 3 calls × 2 items × 3 probes coincide with themselves in the other seed.
    assert check.message.startswith(f"18 of {6 * 18 * 18} pairs")


def test_short_sign_vectors_may_coincide_by_chance():
    x = rademacher(8, 10, generator=generator_for("short"), batch_shape=(10,))
    checks = duplicate_checks(x)
    assert {check.verdict for check in checks} == {REPORTED}
    assert "take a larger n" in checks[0].message
    x[1:] = x[0]
    assert duplicate_checks(x)[0].verdict == FAIL
    # Continuous probes of the same length never coincide.
    y = gaussian(8, 10, generator=generator_for("short"), batch_shape=(10,))
    assert {check.verdict for check in duplicate_checks(y)} == {PASS}


def test_chance_coincidences_alarm_at_the_stated_rate():
    alarms = [
        any(
            check.verdict == FAIL
            for check in duplicate_checks(
                rademacher(8, 4, generator=generator_for("chance", i), batch_shape=(5,)),
                alpha=0.05,
            )
        )
        for i in range(300)
    ]
    # Two scopes at 0.05, discrete: at most 0.1; 300 trials add 0.06 with probability 1e-3.
    assert sum(alarms) / 300 < 0.16


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize(("calls", "m"), [(2, 10), (5, 4), (3, 30)])
def test_more_vectors_than_there_are_values_alarm_at_the_stated_rate(n, calls, m):
    """Two scopes at 0.01: at most 0.02 and, in 600 trials, 0.02 more with probability 1e-3."""
    draws = rademacher(n, m, generator=generator_for("dense", n, m), batch_shape=(600, calls))
    alarms = [any(c.verdict == FAIL for c in duplicate_checks(x, alpha=0.01)) for x in draws]
    assert sum(alarms) / 600 < 0.04


def test_short_vectors_that_are_frozen_are_still_found():
    x = rademacher(8, 10, generator=generator_for("frozen")).expand(10, 8, 10)
    assert duplicate_checks(x)[0].verdict == FAIL
    y = torch.ones(40, 3, 1).double()
    assert duplicate_checks(y)[0].verdict == FAIL


def test_axes_are_checked():
    with pytest.raises(ValueError, match=r"have shape \(\*axes, n, m\), got \(4, 3, 2, 64, 3\)"):
        duplicate_checks(blocks())


def verdicts(draw) -> list[str]:
    return [check.verdict for check in reproducibility_checks(draw, ("key",))]


def test_a_sampler_with_a_generator_is_reproducible():
    assert verdicts(lambda g: rademacher(64, 2, generator=g)) == [PASS, PASS, PASS]
    A = torch.ones(64, 64).double()
    assert verdicts(lambda g: hutchinson_trace(A, gaussian(64, 2, generator=g))) == [PASS] * 3


def test_what_is_not_reproducible_is_found():
    own = generator_for("own")
    assert verdicts(lambda g: torch.randn(3, generator=own))[0] == FAIL
    assert verdicts(lambda g: torch.ones(3)) == [PASS, FAIL, PASS]
    assert verdicts(lambda g: torch.randn(3)) == [FAIL, PASS, FAIL]


@pytest.mark.parametrize("n", [3, 4])
def test_the_tail_of_a_dense_block_keeps_a_level_that_poissons_law_exceeds(n):
    """20000 blocks of 60 vectors at 1e-3: 20 alarms expected, 40 with probability < 1e-4."""
    K = 2 ** (n - 1)
    c = np.random.default_rng(n).multinomial(60, np.full(K, 1 / K), size=20_000)
    pairs, repeats = np.unique((c * (c - 1) // 2).sum(1), return_counts=True)
    p = np.array([_chance_p(int(k), (1, 60), 1, 1 / K) for k in pairs])
    poisson = stats.poisson.sf(pairs - 1, 1770 / K)
    assert repeats[p <= 1e-3].sum() < 40 < repeats[poisson <= 1e-3].sum()
