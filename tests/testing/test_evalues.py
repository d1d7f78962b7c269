"""E-processes stay below 1/α as often as they promise, and see what they are made to see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from specbp import exact
from specbp.testing import evalues
from specbp.testing.evalues import MixtureProcess, NormalMixture, ShiryaevRoberts, VarianceProcess
from specbp.testing.pvalues import enumerated_cgf, gaussian_cgf

SEED = 20260903
HORIZON = 600
ALPHA = 0.05
SPIKE = evalues.standardised(gaussian_cgf([1.0]))  # one Gaussian probe, one eigenvalue: skew 2.8


def spike(repeats: int, salt: int = 0) -> np.ndarray:
    """Standardised xᵀBx of one spike: (g² − 1)/√2, excess kurtosis 12."""
    rng = np.random.default_rng([SEED, salt])
    return (rng.standard_normal((repeats, HORIZON)) ** 2 - 1) / math.sqrt(2)


def normal(repeats: int, salt: int = 0) -> np.ndarray:
    return np.random.default_rng([SEED, salt]).standard_normal((repeats, HORIZON))


def crossed(make, values: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """Value at which each path first reaches 1/α, infinite where it does not."""
    first = []
    for x in values:
        hits = np.flatnonzero(make().extend(x) >= -math.log(alpha))
        first.append(hits[0] + 1 if len(hits) else math.inf)
    return np.array(first)


def four_errors(rate: float, repeats: int) -> float:
    return 4 * math.sqrt(rate * (1 - rate) / repeats)


# Log-mgf ------------------------------------------------------------------------------------------


def test_log_mgf_of_a_gaussian_form_is_that_of_its_density():
    def integrand(g: float, s: float) -> float:
        return math.exp(s * (g * g - 1) / math.sqrt(2) - g * g / 2) / math.sqrt(2 * math.pi)

    for s in (-2.0, -0.3, 0.2, 0.5):
        expected = math.log(2 * integrate.quad(integrand, 0, 60, args=(s,), epsabs=1e-13)[0])
        assert SPIKE(s) == pytest.approx(expected, abs=1e-9)
    assert SPIKE(0.71) == math.inf


def test_log_mgf_of_a_mean_of_probes_is_m_times_that_of_one():
    for s in (-0.8, 0.5):
        of_four = evalues.standardised(gaussian_cgf([1.0, -0.5], m=4))(s)
        assert of_four == pytest.approx(4 * evalues.standardised(gaussian_cgf([1.0, -0.5]))(s / 2))


def test_four_cumulants_are_those_of_the_exact_law():
    B = np.random.default_rng(SEED).standard_normal((6, 6))
    values = np.einsum("ri,ij,rj->r", (X := exact.all_signs(6)), B + B.T, X)
    cgf = enumerated_cgf(values, m=8)
    psi, known = evalues.cumulant_log_mgf(cgf.law), evalues.standardised(cgf)
    for s in (-0.3, 0.3):
        assert psi(s) == pytest.approx(known(s), rel=2e-3)
    assert psi(1.01) == math.inf
    heavy = exact.Moments(mean=5.0, variance=4.0, third=8 * 0.6, fourth=16 * (3 + 2.4))
    assert evalues.cumulant_log_mgf(heavy)(0.5) == pytest.approx(0.125 + 0.0125 + 0.00625)


def test_a_negative_excess_kurtosis_is_not_believed():
    sign = exact.Moments(mean=0.0, variance=1.0, third=0.0, fourth=1.0)
    assert evalues.cumulant_log_mgf(sign)(1.0) == 0.5 > math.log(math.cosh(1.0))


def test_a_law_without_variance_has_no_log_mgf():
    with pytest.raises(ValueError, match="no variance"):
        evalues.cumulant_log_mgf(exact.Moments(1.0, 0.0, 0.0, 0.0))


# Mean ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "log_mgf"), [(normal, evalues.normal_log_mgf), (spike, SPIKE)])
def test_mixture_processes_alarm_no_more_often_than_stated(values, log_mgf):
    repeats = 600
    rate = np.isfinite(crossed(lambda: MixtureProcess(log_mgf), values(repeats))).mean()
    assert 0.01 < rate < ALPHA + four_errors(ALPHA, repeats)


def test_heavy_tails_need_their_own_log_mgf():
    values, rates = spike(2500, salt=1)[:, :60], []
    for log_mgf in (evalues.normal_log_mgf, SPIKE):
        found = crossed(lambda psi=log_mgf: MixtureProcess(psi), values, alpha=1e-3)
        rates.append(np.isfinite(found).mean())
    assert rates[0] > 0.005
    assert rates[1] < 1e-3 + four_errors(1e-3, 2500)


@pytest.mark.parametrize(("values", "log_mgf"), [(normal, evalues.normal_log_mgf), (spike, SPIKE)])
@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_half_a_standard_deviation_is_found_in_a_hundred_values(values, log_mgf, shift):
    found = crossed(lambda: MixtureProcess(log_mgf), values(100, salt=2) + shift, alpha=0.01)
    assert np.isfinite(found).all()
    assert found.mean() < 110


def test_every_tilt_has_expectation_one():
    """The exact statement behind the simulation, over all outcomes of three fair signs."""
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T
    psi = evalues.standardised(enumerated_cgf([-1.0, 1.0]))
    e = [np.exp(MixtureProcess(psi).extend(x)) for x in signs]
    np.testing.assert_allclose(np.mean(e, axis=0), 1.0, rtol=1e-12)


def test_one_sided_processes_see_one_side():
    up = MixtureProcess(signs=(1,))
    down = MixtureProcess(signs=(-1,))
    x = np.full(100, 0.5)
    assert up.extend(x)[-1] > 5
    assert down.extend(x)[-1] < 0
    both = MixtureProcess().extend(x)[-1]
    assert both == pytest.approx(np.logaddexp(up.log_e, down.log_e) - math.log(2))


@pytest.mark.parametrize("make", [MixtureProcess, lambda: VarianceProcess(0.0)])
@given(cuts=st.lists(st.integers(0, 40), max_size=4))
def test_blocks_change_nothing(make, cuts):
    x = np.random.default_rng(SEED).standard_normal(40)
    whole, parts = make(), make()
    path = np.concatenate([parts.extend(b) for b in np.split(x, sorted(cuts))])
    np.testing.assert_allclose(path, whole.extend(x), rtol=1e-10, atol=1e-12)
    assert (parts.count, parts.log_e) == (40, path[-1])


def test_a_naive_mixture_agrees():
    x = np.random.default_rng(SEED).standard_normal(5) + 1
    tilts = [0.1, 0.4, -0.1, -0.4]
    naive = [
        sum(math.prod(math.exp(s * v - s**2 / 2) for v in x[:t]) for s in tilts) / 4
        for t in range(1, 6)
    ]
    path = MixtureProcess(smallest=0.1, largest=0.4, terms=2).extend(x)
    np.testing.assert_allclose(np.exp(path), naive, rtol=1e-12)


def test_tilts_without_a_moment_are_left_out():
    assert math.isfinite(MixtureProcess(SPIKE, smallest=0.5, largest=2.0).extend([3.0])[0])
    with pytest.raises(ValueError, match="finite at no tilt"):
        MixtureProcess(SPIKE, smallest=0.8, signs=(1,))


@pytest.mark.parametrize("process", [MixtureProcess(), VarianceProcess(0.0)])
@pytest.mark.parametrize("bad", [[math.nan], [1.0, math.inf], [[1.0]]])
def test_values_that_are_none_are_refused(process, bad):
    with pytest.raises(ValueError, match="finite numbers"):
        process.extend(bad)


# Intervals ----------------------------------------------------------------------------------------


def test_intervals_miss_no_more_often_than_stated():
    repeats, intervals = 2000, NormalMixture(ALPHA, t_opt=200)
    t = np.arange(1, HORIZON + 1)
    means = np.cumsum(normal(repeats, salt=3), axis=1) / t
    rate = (np.abs(means) > intervals.radius(t)).any(axis=1).mean()
    assert 0.015 < rate < ALPHA + four_errors(ALPHA, repeats)


@given(st.floats(1e-6, 0.5), st.floats(1, 1e5))
def test_no_other_mixture_is_narrower_at_its_time(alpha, t):
    best = NormalMixture(alpha, t)

    def radius(log_rho: float) -> float:
        rho = math.exp(log_rho)
        return math.sqrt((t + rho) * math.log((t + rho) / (rho * alpha**2))) / t

    found = optimize.minimize_scalar(radius, bounds=(math.log(t) - 8, math.log(t) + 4))
    assert float(best.radius(t)) == pytest.approx(found.fun, rel=1e-6)
    assert float(best.radius(t)) == pytest.approx(math.sqrt(evalues.optimal_ratio(alpha) / t))


def test_intervals_are_in_the_unit_of_the_values():
    ends = NormalMixture(0.01, 10).intervals([3.0, 5.0], sd=2.0)
    half = 2 * NormalMixture(0.01, 10).radius([1, 2])
    np.testing.assert_allclose(ends, [[3 - half[0], 3 + half[0]], [4 - half[1], 4 + half[1]]])


@pytest.mark.parametrize(("alpha", "t_opt"), [(0.0, 10), (1.0, 10), (0.1, 0)])
def test_intervals_without_level_or_time_are_refused(alpha, t_opt):
    with pytest.raises(ValueError, match="alpha lies in"):
        NormalMixture(alpha, t_opt)


# Variance -----------------------------------------------------------------------------------------


def spike_log_laplace(rate: float) -> float:
    def integrand(g: float) -> float:
        return math.exp(-rate * (g * g - 1) ** 2 / 2 - g * g / 2)

    return math.log(2 * integrate.quad(integrand, 0, 12)[0] / math.sqrt(2 * math.pi))


@pytest.mark.parametrize(
    ("values", "make"),
    [
        (normal, lambda: VarianceProcess(0.0)),
        (spike, lambda: VarianceProcess(12.0)),
        (spike, lambda: VarianceProcess(12.0, log_laplace=spike_log_laplace)),
    ],
    ids=["normal", "spike", "spike, exact"],
)
def test_variance_processes_alarm_no_more_often_than_stated(values, make):
    repeats = 300
    rate = np.isfinite(crossed(make, values(repeats, salt=4))).mean()
    assert rate < ALPHA + four_errors(ALPHA, repeats)


@pytest.mark.parametrize(
    ("values", "make", "ratio", "mean"),
    [
        (normal, lambda: VarianceProcess(0.0), 2.0, 75),
        (normal, lambda: VarianceProcess(0.0), 0.5, 170),
        (spike, lambda: VarianceProcess(12.0), 2.0, 280),
        (spike, lambda: VarianceProcess(12.0, log_laplace=spike_log_laplace), 0.5, 320),
    ],
)
def test_a_doubled_or_halved_variance_is_found(values, make, ratio, mean):
    found = crossed(make, values(60, salt=5) * math.sqrt(ratio), alpha=0.01)
    assert np.isfinite(found).mean() > 0.9
    assert found[np.isfinite(found)].mean() < mean


def test_the_exact_transform_finds_a_small_variance_of_a_heavy_law_sooner():
    x = spike(20, salt=6) / math.sqrt(2)
    bound = [VarianceProcess(12.0).extend(v)[-1] for v in x]
    known = [VarianceProcess(12.0, log_laplace=spike_log_laplace).extend(v)[-1] for v in x]
    assert np.mean(known) > np.mean(bound) + 2


@pytest.mark.parametrize("kurtosis", [-2.0, -1.2, 0.0, 12.0])
def test_both_halves_have_expectation_at_most_one(kurtosis):
    """Exactly, for the law of y on two points that has E y = 1 and this kurtosis."""
    high = 3 + kurtosis  # y = E y² with probability 1 / E y², else 0
    e = [np.exp(VarianceProcess(kurtosis).extend([x])[0]) for x in (math.sqrt(high), 0.0)]
    assert e[0] / high + e[1] * (1 - 1 / high) <= 1 + 1e-12


@given(st.floats(0, 1e3), st.floats(0, 50))
def test_the_bound_behind_the_lower_half(y, rate):
    assert math.exp(-rate * y) <= (1 - rate * y + (rate * y) ** 2 / 2) * (1 + 1e-12)


@pytest.mark.parametrize("bad", [-2.1, math.nan])
def test_an_impossible_kurtosis_is_refused(bad):
    with pytest.raises(ValueError, match="≥ -2"):
        VarianceProcess(bad)


# Detector -----------------------------------------------------------------------------------------


def night(z: np.ndarray, s: float) -> np.ndarray:
    return np.exp(s * z - s**2 / 2)


def test_the_detector_adds_one_and_multiplies():
    detector, M = ShiryaevRoberts(threshold=20.0), 0.0
    for e in (0.5, 2.0, 3.0, 1.0):
        M = (M + 1) * e
        assert detector.update(e) == (M >= 20)
        assert detector.value == pytest.approx(M)


def test_false_alarms_come_after_the_threshold_on_average():
    rng, threshold, nights = np.random.default_rng(SEED), 50.0, 2000
    runs = []
    for _ in range(100):
        detector = ShiryaevRoberts(threshold)
        e = night(rng.standard_normal(nights), 1.0)
        runs.append(next((t + 1 for t in range(nights) if detector.update(e[t])), nights))
    assert np.mean(runs) > threshold - 4 * np.std(runs) / 10
    assert np.median(runs) < 10 * threshold  # and it is no detector that never alarms


def test_alternatives_are_kept_apart_and_find_a_small_shift_sooner():
    rng, s = np.random.default_rng(SEED), np.array([0.25, 0.5, 1.0, 2.0, 4.0])
    delays: dict[str, list[int]] = {"apart": [], "pooled": []}
    for _ in range(40):
        z = rng.standard_normal(400) + 0.7
        for name in delays:
            detector = ShiryaevRoberts(1000.0, np.zeros(5) if name == "apart" else 0.0)
            e = [night(v, s) if name == "apart" else night(v, s).mean() for v in z]
            delays[name].append(next((t for t in range(400) if detector.update(e[t])), 400))
    assert np.median(delays["apart"]) < 50
    assert np.median(delays["apart"]) < 0.6 * np.median(delays["pooled"])


def test_infinite_evidence_stays():
    detector = ShiryaevRoberts(10.0)
    assert detector.update(math.inf)
    assert detector.update(0.0)


def test_a_detector_goes_on_from_its_state():
    one = ShiryaevRoberts(10.0)
    for e in (2.0, 0.7):
        one.update(e)
    other = ShiryaevRoberts(10.0, one.state)
    assert (one.update(1.5), one.value) == (other.update(1.5), other.value)


@pytest.mark.parametrize("bad", [-1.0, math.nan, [1.0, -0.5]])
def test_negative_evidence_is_refused(bad):
    with pytest.raises(ValueError, match="≥ 0"):
        ShiryaevRoberts().update(bad)
    with pytest.raises(ValueError, match="≥ 0"):
        ShiryaevRoberts(state=bad)
    with pytest.raises(ValueError, match="positive"):
        ShiryaevRoberts(threshold=0.0)


def test_the_radius_is_the_bound_of_a_normal_mixture():
    """Robbins' mixture over N(0, 1/ρ), integrated numerically, crosses 1/α at the radius."""
    mixture, t = NormalMixture(0.01, 50), 40
    S = t * float(mixture.radius(t))

    def integrand(s: float) -> float:
        return math.exp(s * S - t * s**2 / 2 + stats.norm.logpdf(s, scale=mixture.rho**-0.5))

    assert integrate.quad(integrand, -10, 10)[0] == pytest.approx(100, rel=1e-8)
