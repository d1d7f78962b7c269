"""Scores and p-values against laws whose tails are known, and cgfs against their definition."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from scipy import optimize, stats

from specbp import exact
from specbp.testing import pvalues
from specbp.testing.pvalues import enumerated_cgf, gaussian_cgf, saddlepoint_p, saddlepoint_score

SEED = 20260901
SPIKE = np.array([1.0] + [0.01] * 63)  # n = 64, skewness 2.8
INDEFINITE = np.array([-0.7, 0.2, 1.3])


def tails(score: float) -> tuple[float, float]:
    return float(stats.norm.cdf(score)), float(stats.norm.sf(score))


# Cumulant generating functions --------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("s", [-0.6, -1e-3, 0.0, 0.05, 0.3])
def test_gaussian_cgf_is_that_of_its_density(s, m):
    """K of λ (x² − 1) from mpmath's integral over the normal density; independent terms add."""
    with mpmath.workdps(30):

        def one(lam: float) -> mpmath.mpf:
            def density(x):
                return mpmath.exp(s / m * lam * (x * x - 1) - x * x / 2)

            return mpmath.log(
                mpmath.quad(density, [-mpmath.inf, 0, mpmath.inf]) / (2 * mpmath.pi) ** 0.5
            )

        expected = float(m * sum(one(float(lam)) for lam in INDEFINITE))
    assert gaussian_cgf(INDEFINITE, m)(s) == pytest.approx(expected, rel=1e-12, abs=1e-16)


def test_gaussian_cgf_has_the_moments_of_the_form():
    V = np.linalg.qr(np.random.default_rng(SEED).standard_normal((3, 3)))[0]
    law, expected = (
        gaussian_cgf(INDEFINITE, 4).law,
        exact.moments((V * INDEFINITE) @ V.T, "gaussian"),
    )
    for name in ("mean", "variance", "third", "fourth"):
        assert getattr(law, name) == pytest.approx(getattr(expected.averaged(4), name), rel=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_enumerated_cgf_is_its_definition(m):
    t, w = np.array([-1.0, 0.5, 4.0]), np.array([0.5, 0.3, 0.2])
    means = [np.mean(c) for c in itertools.product(t, repeat=m)]
    probabilities = [np.prod(c) for c in itertools.product(w, repeat=m)]
    cgf = enumerated_cgf(t, w, m)
    for s in (-3.0, -0.1, 0.0, 0.7, 20.0):
        deviations = np.array(means) - w @ t
        expected = np.log(np.sum(probabilities * np.exp(s * deviations)))
        assert cgf(s) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert cgf.support == pytest.approx((min(means) - w @ t, max(means) - w @ t))
    assert cgf.atoms == pytest.approx((0.5**m, 0.2**m))
    assert cgf.law.variance == pytest.approx(np.cov(means, aweights=probabilities, ddof=0))


@pytest.mark.parametrize(
    "cgf", [gaussian_cgf(SPIKE, 2), gaussian_cgf(INDEFINITE), enumerated_cgf([0.0, 1.0, 5.0])]
)
def test_derivatives_are_those_of_the_cgf(cgf):
    for s in (-0.2, 0.1, 0.3):
        h = 1e-5
        _, slope, curvature = cgf.derivatives(s)
        assert slope == pytest.approx((cgf(s + h) - cgf(s - h)) / (2 * h), rel=1e-8)
        steps = [cgf.derivatives(s + d)[1] for d in (h, -h)]
        assert curvature == pytest.approx((steps[0] - steps[1]) / (2 * h), rel=1e-7)
    assert cgf.derivatives(0.0)[1] == pytest.approx(0, abs=1e-15)
    assert cgf.derivatives(0.0)[2] == pytest.approx(cgf.law.variance)


def test_domain_and_support_follow_the_signs_of_the_eigenvalues():
    assert gaussian_cgf([2.0, 1.0]).domain == (-math.inf, 0.25)
    assert gaussian_cgf([2.0, 1.0]).support == (-3.0, math.inf)
    assert gaussian_cgf([-2.0, -1.0], 3).domain == (-0.75, math.inf)
    assert gaussian_cgf([-2.0, -1.0], 3).support == (-math.inf, 3.0)
    assert gaussian_cgf([-2.0, 1.0])(0.5) == math.inf


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ([1.0, 1.0], None, "needs finite values that differ; compare a constant exactly"),
        ([1.0, 2.0], [1.0, 0.0], "needs finite values that differ"),
        ([1.0, math.nan], None, "needs finite values that differ"),
        ([1.0, 2.0], [0.5, 0.4], r"of sum 1, got .* the sum 0.9"),
        ([1.0, 2.0], [1.5, -0.5], "≥ 0 of sum 1"),
        ([1.0, 2.0], [1.0], r"got shapes \(2,\), \(1,\)"),
    ],
)
def test_what_is_no_law_is_refused(values, weights, message):
    with pytest.raises(ValueError, match=message):
        enumerated_cgf(values, weights)


def test_a_form_without_eigenvalues_is_refused():
    with pytest.raises(ValueError, match="an eigenvalue other than zero"):
        gaussian_cgf([0.0, 0.0])


# Saddlepoint --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("R", "error"), [(5, 0.03), (20, 0.003)])
@pytest.mark.parametrize("tail", [0.3, 0.05, 5e-3, 5e-4, 5e-6, 1e-9])
def test_scores_are_those_of_the_exact_law_of_one_spike(R, error, tail):
    """R T is χ²_R, of skewness 2.8 / √R: the relative error of a tail does not grow with rarity."""
    cgf = gaussian_cgf([1.0])
    upper = tails(saddlepoint_score(stats.chi2.isf(tail, R) / R, cgf, R))[1]
    lower = tails(saddlepoint_score(stats.chi2.ppf(tail, R) / R, cgf, R))[0]
    assert upper == pytest.approx(tail, rel=error)
    assert lower == pytest.approx(tail, rel=error)


def test_scores_agree_with_the_formula_of_lugannani_and_rice():
    cgf, R = gaussian_cgf(SPIKE), 20
    for x in (0.4, 0.9, 3.0, 6.0):
        d = x - cgf.law.mean
        s = pvalues._saddle(d, cgf)
        w = math.copysign(math.sqrt(2 * R * (s * d - cgf(s))), d)
        v = s * math.sqrt(R * cgf.derivatives(s)[2])
        upper = stats.norm.sf(w) + stats.norm.pdf(w) * (1 / v - 1 / w)
        assert tails(saddlepoint_score(x, cgf, R))[1] == pytest.approx(upper, rel=2e-3)


def test_scores_are_smooth_and_increasing_through_the_mean():
    cgf, R = gaussian_cgf(SPIKE), 20
    x = cgf.law.mean + np.linspace(-0.25, 0.25, 2001)
    scores = np.array([saddlepoint_score(float(v), cgf, R) for v in x])
    # Where the guard ends the two expansions differ by what either leaves out.
    assert (np.diff(scores) > -4e-3).all()
    assert np.abs(np.diff(scores)).max() < 6e-3
    assert saddlepoint_score(cgf.law.mean, cgf, R) == pytest.approx(2.8 / 6 / R**0.5, rel=0.02)


def critical(cgf: pvalues.Cgf, R: int, alpha: float) -> list[float]:
    """The two means at which the p-value is alpha."""
    z, sd = stats.norm.isf(alpha / 2), math.sqrt(cgf.law.variance / R)
    brackets = [(-cgf.law.mean + 1e-3, 0.0, -z), (0.0, 20 * sd, z)]
    return [
        optimize.brentq(lambda x, at=at: saddlepoint_score(x, cgf, R) - at, a, b)
        for a, b, at in [(cgf.law.mean + a, cgf.law.mean + b, at) for a, b, at in brackets]
    ]


@pytest.mark.parametrize(("alpha", "plain"), [(1e-2, 1.3), (1e-3, 3.0)])
def test_the_size_for_one_spike_is_the_stated_one(alpha, plain):
    """Skewness 2.8, 20 values; plain z alarms more often than stated, by the factor `plain`."""
    cgf, R, draws = gaussian_cgf(SPIKE), 20, 200_000
    rng = np.random.default_rng(SEED)
    means = (rng.chisquare(1, (draws, R)) + 0.01 * rng.chisquare(63, (draws, R))).mean(1)
    low, high = critical(cgf, R, alpha)
    assert saddlepoint_p(low, cgf, R) == pytest.approx(alpha)
    assert saddlepoint_p(high, cgf, R) == pytest.approx(alpha)
    alarms = np.mean((means <= low) | (means >= high))
    # Four standard errors of a rate alpha.
    assert abs(alarms - alpha) < 4 * math.sqrt(alpha / draws)
    z = np.abs(means - cgf.law.mean) / math.sqrt(cgf.law.variance / R)
    assert np.mean(z >= stats.norm.isf(alpha / 2)) > plain * alpha


def test_an_enumerated_law_has_its_exact_tails():
    """Sums of 12 draws of three values, by convolution."""
    t, w, R = np.array([0.0, 1.0, 7.0]), np.array([0.6, 0.3, 0.1]), 12
    one = np.zeros(8)
    one[t.astype(int)] = w
    law = np.array([1.0])
    for _ in range(R):
        law = np.convolve(law, one)
    cgf = enumerated_cgf(t, w)
    for total in (25, 35, 45):
        # On a lattice the smooth formula gives the tail with half of its first atom.
        expected = law[total + 1 :].sum() + law[total] / 2
        found = tails(saddlepoint_score(total / R, cgf, R))[1]
        assert found == pytest.approx(expected, rel=0.12)


def test_the_edge_of_the_support():
    cgf = enumerated_cgf([-1.0, 1.0])
    assert tails(saddlepoint_score(1.0, cgf, 10))[1] == pytest.approx(2.0**-10)
    assert tails(saddlepoint_score(-1.0, cgf, 10))[0] == pytest.approx(2.0**-10)
    assert saddlepoint_p(1.1, cgf, 10) == 0.0
    assert saddlepoint_p(-1e-3, gaussian_cgf([1.0]), 10) == 0.0  # χ² is positive
    almost = saddlepoint_score(1 - 1e-9, cgf, 10)
    assert 0 < almost < math.inf
    assert saddlepoint_score(0.0, cgf, 1) == 0.0


def test_not_a_number_is_never_likely():
    cgf = gaussian_cgf([1.0])
    for x in (math.nan, math.inf, -math.inf):
        assert saddlepoint_p(x, cgf, 20) == 0.0
    assert pvalues.normal_p(math.nan) == 0.0


# Cornish–Fisher and Box ---------------------------------------------------------------------------


def test_cornish_fisher_inverts_the_skewness_of_chi_squares():
    nu = 400
    law = exact.Moments(nu, 2 * nu, 8 * nu, 48 * nu + 12 * nu**2)
    for tail in (0.3, 1e-2, 1e-4):
        z = (stats.chi2.isf(tail, nu) - nu) / math.sqrt(2 * nu)
        exact_score = stats.norm.isf(tail)
        assert abs(pvalues.cornish_fisher(z, law) - exact_score) < 0.05 * abs(z - exact_score)


def test_scores_of_a_skewed_law_average_to_zero():
    """A sum of many scores is a test too: near the mean they keep the sign of the skewness."""
    cgf, R = gaussian_cgf([1.0]), 20
    means = stats.chi2.ppf((np.arange(400) + 0.5) / 400, R) / R
    z = (means - 1) / math.sqrt(2 / R)
    by_saddlepoint = [saddlepoint_score(float(x), cgf, R) for x in means]
    by_expansion = [pvalues.cornish_fisher(float(v), cgf.law.averaged(R)) for v in z]
    assert abs(np.mean(by_saddlepoint)) < 2e-3
    assert abs(np.mean(by_expansion)) < 0.02
    assert by_saddlepoint[np.searchsorted(z, -0.05)] > 0.04


def test_cornish_fisher_never_turns_back():
    law = exact.moments(np.diag([1.0]), "gaussian").averaged(20)
    assert pvalues.cornish_fisher(8.0, law) >= 4.0
    assert pvalues.cornish_fisher(-8.0, law) <= -4.0


@pytest.mark.parametrize("e", [-0.5, 0.0, 5.0])
def test_box_freedom_gives_chi_square_the_variance_of_the_mean_square(e):
    R = 50
    # Var of the mean of R squares over σ⁴ is (e + 2) / R; that of χ²_ν / ν is 2 / ν.
    assert 2 / pvalues.box_freedom(R, e) == pytest.approx((e + 2) / R)


def test_box_freedom_of_a_two_point_law_is_finite():
    assert pvalues.box_freedom(10, -2.0) == 2e7


@pytest.mark.parametrize("tail", [0.5, 1e-3, 1e-12])
def test_box_score_is_the_score_of_chi_square(tail):
    for nu in (3.0, 200.0):
        assert pvalues.box_score(stats.chi2.isf(tail, nu) / nu, nu) == pytest.approx(
            stats.norm.isf(tail), abs=1e-9
        )
        assert pvalues.box_score(stats.chi2.ppf(tail, nu) / nu, nu) == pytest.approx(
            stats.norm.ppf(tail), abs=1e-9
        )
    assert math.isnan(pvalues.box_score(math.nan, 3.0))
