"""Decisions that stop by themselves keep both error rates, and escalation keeps its level."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specbp import exact
from specbp.testing import outcome, sampling, sequential
from specbp.testing.evalues import MixtureProcess, standardised
from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, Check, Level
from specbp.testing.pvalues import gaussian_cgf
from specbp.testing.sequential import escalate, three_way

SEED = 20260904
EPS = 0.5
NORMAL = exact.Moments(mean=0.0, variance=1.0, third=0.0, fourth=3.0)
SPIKE = standardised(gaussian_cgf([1.0]))


def stream(shift: float, repeat: int, spike: bool = False) -> Iterator[float]:
    """Endless standardised values, normal or (g² − 1)/√2."""
    rng = np.random.default_rng([SEED, repeat])
    while True:
        g = rng.standard_normal(64)
        yield from ((g**2 - 1) / math.sqrt(2) if spike else g) + shift


def decisions(shift: float, repeats: int, *, spike: bool = False, eps: float = EPS, **settings):
    """Share of each verdict, and the mean number of values in units of 1/ε²."""
    log_mgf = SPIKE if spike else None
    checks = [
        three_way(stream(shift, r, spike), 0.0, 1.0, eps, log_mgf=log_mgf, **settings)
        for r in range(repeats)
    ]
    counts = Counter(check.verdict for check in checks)
    shares = {verdict: counts[verdict] / repeats for verdict in (PASS, FAIL, INCONCLUSIVE)}
    return shares, np.mean([check.size for check in checks]) * eps**2


# Three-way decisions ------------------------------------------------------------------------------


@pytest.mark.parametrize("spike", [False, True])
def test_a_right_mean_passes(spike):
    shares, size = decisions(0.0, 400, spike=spike)
    # P(FAIL) ≤ 1e-3: more than 4 of 400 have probability 7e-5.
    assert shares[FAIL] <= 0.01
    assert shares[PASS] >= 0.99
    assert size < 20


@pytest.mark.parametrize("spike", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_shift_of_the_margin_passes_no_more_often_than_stated(spike, sign):
    shares, size = decisions(sign * EPS, 400, spike=spike)
    assert shares[PASS] <= 0.01 + 4 * math.sqrt(0.01 * 0.99 / 400)
    assert shares[FAIL] >= 0.95
    assert size < 32


def test_the_margin_is_judged_at_its_level_and_not_far_below():
    shares, _ = decisions(EPS, 300, alpha_pass=0.2)
    assert 0.02 < shares[PASS] <= 0.2 + 4 * math.sqrt(0.2 * 0.8 / 300)


def test_twice_the_margin_fails_at_once():
    shares, size = decisions(2 * EPS, 200, heavy=False)
    assert shares[FAIL] == 1
    assert size < 6


def test_half_the_margin_is_the_hardest():
    shares, size = decisions(EPS / 2, 200)
    assert min(shares[PASS], shares[FAIL]) > 0.15
    assert 22 < size < 40


def test_sizes_scale_with_the_margin():
    shares, size = decisions(0.0, 60, eps=0.2)
    assert shares[PASS] == 1
    assert 12 < size < 19


def test_early_looks_at_heavy_tails_fail_too_often_without_guard_or_log_mgf():
    alpha, repeats = 0.01, 800
    values = [list(itertools.islice(stream(0.0, r, True), 120)) for r in range(repeats)]

    def rate(**settings: object) -> float:
        checks = [three_way(x, 0.0, 1.0, EPS, alpha, **settings) for x in values]
        return sum(check.verdict == FAIL for check in checks) / repeats

    exact_rate, guarded, bare = rate(log_mgf=SPIKE), rate(heavy=True), rate(heavy=False)
    assert exact_rate <= alpha
    assert guarded < bare
    assert bare > 1.5 * alpha


def test_no_first_failure_before_thirty_heavy_values():
    def far() -> Iterator[float]:
        return itertools.repeat(3.0)

    assert three_way(far(), 0.0, 1.0, 0.5).size == 30
    assert three_way(far(), 0.0, 1.0, 0.5, heavy=False).size < 10


def test_undecided_at_the_cap_is_inconclusive():
    half = EPS / 2
    check = three_way(itertools.cycle([half + 1, half - 1]), 0.0, 1.0, EPS, 1e-12, 1e-9)
    assert (check.verdict, check.size) == (INCONCLUSIVE, math.ceil(60 / EPS**2))


def test_too_few_values_are_inconclusive_and_say_what_they_detect():
    check = three_way([0.1, -0.1] * 5, 0.0, 1.0, EPS)
    assert (check.verdict, check.size) == (INCONCLUSIVE, 10)
    assert check.detectable is not None
    assert check.detectable > EPS
    assert three_way([], 0.0, 1.0, EPS).verdict == INCONCLUSIVE


def test_the_detectable_shift_is_detected():
    size = 200
    check = three_way(itertools.islice(stream(0.25, 0), size), 0.0, 1.0, EPS, alpha_pass=1e-9)
    assert check.verdict == INCONCLUSIVE
    found = [
        three_way(itertools.islice(stream(check.detectable, r), size), 0.0, 1.0, EPS).verdict
        for r in range(300)
    ]
    # The shift is that of the interval; the mixture of tilts differs a little from it.
    assert np.mean([v == FAIL for v in found]) > outcome.POWER - 0.05


def test_the_check_says_everything():
    check = three_way(stream(0.0, 1), 0.0, 1.0, EPS)
    assert (check.verdict, check.margin, check.detectable) == (PASS, EPS, EPS)
    assert check.alpha == 1e-3
    assert check.p is None
    x = np.fromiter(itertools.islice(stream(0.0, 1), check.size), float)
    process = MixtureProcess(smallest=0.3 * EPS, largest=3 * EPS)
    assert check.e == pytest.approx(math.exp(process.extend(x)[-1]))
    assert check.statistic == pytest.approx(x.mean())
    for part in (f"{check.size} values", "sd from the contract", "probability at most 0.01"):
        assert part in check.message


def naive_three_way(x: list[float], eps: float, fail: float, pass_: float) -> tuple[str, int]:
    """Value by value, every product written out."""
    tilts = [0.3 * eps * 10 ** (k / 7) for k in range(8)]

    def process(values: list[float], *signs: int) -> float:
        return sum(
            math.exp(sum(sign * s * v - s**2 / 2 for v in values)) for sign in signs for s in tilts
        ) / (len(signs) * len(tilts))

    far_above = far_below = False
    for t in range(1, len(x) + 1):
        far_above |= process([v - eps for v in x[:t]], -1) >= 1 / pass_
        far_below |= process([v + eps for v in x[:t]], 1) >= 1 / pass_
        if t >= 30 and process(x[:t], 1, -1) >= 1 / fail:
            return FAIL, t
        if far_above and far_below:
            return PASS, t
    return INCONCLUSIVE, len(x)


@pytest.mark.parametrize(("fail", "pass_"), [(1e-3, 1e-2), (0.5, 0.1), (0.9, 0.9)])
@pytest.mark.parametrize("drift", [0.0, 0.02, 0.05])
def test_decisions_are_those_of_the_definition(fail, pass_, drift):
    for repeat in range(6):
        x = [v + drift * t - 0.6 for t, v in zip(range(70), stream(0.0, repeat), strict=False)]
        check = three_way(x, 0.0, 1.0, EPS, fail, pass_)
        assert (check.verdict, check.size) == naive_three_way(x, EPS, fail, pass_)


@given(st.floats(-5, 5), st.floats(0.1, 10))
def test_units_do_not_matter(mean, sd):
    x = np.array(list(itertools.islice(stream(0.4, 2), 240)))
    one, other = three_way(x, 0.0, 1.0, EPS), three_way(mean + sd * x, mean, sd, EPS)
    assert (one.verdict, one.size) == (other.verdict, other.size)
    assert one.e == pytest.approx(other.e, rel=1e-6)


def test_signs_do_not_matter():
    x = np.array(list(itertools.islice(stream(0.4, 2), 240)))
    one, other = three_way(x, 0.0, 1.0, EPS), three_way(-x, 0.0, 1.0, EPS)
    assert (one.verdict, one.size, one.e) == (other.verdict, other.size, other.e)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_none_fails(bad):
    check = three_way([0.1] * 40 + [bad] + [0.1] * 40, 0.0, 1.0, EPS)
    assert check.verdict == FAIL
    assert "value 40" in check.message


def test_a_stream_is_read_no_further_than_needed():
    values = stream(0.0, 3)
    check = three_way(values, 0.0, 1.0, EPS)
    whole = list(itertools.islice(stream(0.0, 3), check.size + 64))
    taken = whole.index(next(values))
    assert check.size <= taken < check.size + sequential.BLOCK


@pytest.mark.parametrize(
    ("sd", "margin", "fail", "pass_"),
    [(0.0, 0.5, 0.1, 0.1), (1.0, 0.0, 0.1, 0.1), (1.0, 0.5, 0.0, 0.1), (1.0, 0.5, 0.1, 1.0)],
)
def test_impossible_settings_are_refused(sd, margin, fail, pass_):
    with pytest.raises(ValueError, match="positive|required"):
        three_way([0.0], 0.0, sd, margin, fail, pass_)


# Escalation ---------------------------------------------------------------------------------------


def mean_test(values: np.ndarray, level: Level) -> Check:
    return sampling.mean(values, 0.0, NORMAL, level)


def escalated(shift: float, repeat: int, level: Level, **settings) -> Check:
    rng = np.random.default_rng([SEED, 1, repeat])
    return escalate(lambda k: rng.standard_normal(k) + shift, mean_test, level, **settings)


def test_escalation_keeps_its_level():
    repeats, level = 1500, Level(alpha=0.04, margin=10.0)
    checks = [escalated(0.0, r, level) for r in range(repeats)]
    rate = np.mean([check.verdict == FAIL for check in checks])
    # A quarter of the level at the first look, nearly nothing later: most are not escalated.
    assert 0.004 < rate < 0.04
    assert np.mean([check.p <= 0.04 for check in checks]) == rate
    assert np.mean([check.size == 64 for check in checks]) > 0.97


def test_escalation_that_always_looks_three_times_keeps_its_level():
    """A blind first look goes on: the union bound is what keeps the level, and it is used up."""
    repeats, level = 800, Level(alpha=0.2, margin=1e-6)
    checks = [escalated(0.0, r, level, sizes=(8, 16, 32)) for r in range(repeats)]
    rate = np.mean([check.verdict == FAIL for check in checks])
    assert 0.12 < rate < 0.2 + 4 * math.sqrt(0.2 * 0.8 / repeats)
    assert {check.verdict for check in checks} == {FAIL, INCONCLUSIVE}
    assert all(check.size == 32 for check in checks if check.verdict == INCONCLUSIVE)


def test_what_looks_suspicious_is_decided_by_more_values():
    level = Level(alpha=1e-3, margin=10.0)
    first = np.array([escalated(0.2, r, level, sizes=(64,), shares=(1,)).p for r in range(200)])
    checks = [escalated(0.2, r, level) for r in range(200)]
    suspicious = first < 1e-2
    assert all((c.size > 64) or c.verdict == FAIL for c in itertools.compress(checks, suspicious))
    found = np.mean([c.verdict == FAIL for c in checks])
    assert found > 2 * np.mean(first <= 1e-3)


def test_a_blind_look_is_followed_by_a_larger_one():
    level = Level(alpha=1e-3, margin=0.17)
    check = escalated(0.0, 3, level)
    assert (check.verdict, check.size) == (PASS, 1024)
    assert "look 3 of 3" in check.message


def test_values_are_kept_from_look_to_look():
    asked, seen = [], []

    def sample(k: int) -> np.ndarray:
        asked.append(k)
        return np.full((k, 2), float(len(asked)))

    def test(values: np.ndarray, level: Level) -> Check:
        seen.append(values)
        return Check("x", "", INCONCLUSIVE, 0.0, 0.0, "", p=0.5, alpha=level.alpha)

    check = escalate(sample, test, Level(0.4, 1.0), sizes=(2, 5, 6))
    assert asked == [2, 3, 1]
    assert [len(v) for v in seen] == [2, 5, 6]
    assert seen[-1][:, 0].tolist() == [1, 1, 2, 2, 2, 3]
    assert (check.alpha, check.p) == (0.4, 1.0)


def test_the_level_is_split_as_asked():
    levels = []

    def test(values: np.ndarray, level: Level) -> Check:
        levels.append(level.alpha)
        return Check("x", "", INCONCLUSIVE, 0.0, 0.0, "", p=0.04, alpha=level.alpha)

    check = escalate(np.zeros, test, Level(0.4, 1.0))
    assert levels == pytest.approx([0.1, 0.1, 0.2])
    assert check.p == pytest.approx(0.08)


def test_the_p_value_is_that_of_the_most_extreme_look():
    found = iter([0.03, 0.5, 0.9])

    def test(values: np.ndarray, level: Level) -> Check:
        return Check("x", "", INCONCLUSIVE, 0.0, 0.0, "", p=next(found), alpha=level.alpha)

    assert escalate(np.zeros, test, Level(1e-3, 1.0)).p == pytest.approx(0.12)


def test_a_check_without_chance_is_final():
    def test(values: np.ndarray, level: Level) -> Check:
        return outcome.within("x", "", 1.0, 0.5)

    check = escalate(np.zeros, test, Level(0.4, 1.0))
    assert (check.verdict, check.p) == (FAIL, None)


def test_a_look_that_is_too_short_for_a_p_value_is_followed_by_longer_ones():
    """Student's t wants 400 values: only the last look of 64, 256 and 1024 has them."""

    def test(values: np.ndarray, level: Level) -> Check:
        return sampling.t_mean(values, 0.0, level)

    level = Level(alpha=1e-3, margin=0.2)
    check = escalate(np.random.default_rng(SEED).standard_normal, test, level)
    assert (check.verdict, check.size, check.alpha) == (PASS, 1024, 1e-3)
    assert check.p is not None
    wrong = escalate(lambda k: 1 + np.random.default_rng(k).standard_normal(k), test, level)
    assert (wrong.verdict, wrong.size) == (FAIL, 1024)
    blind = escalate(np.random.default_rng(SEED).standard_normal, test, level, (8, 16), (1, 1))
    assert (blind.verdict, blind.p, blind.alpha) == (INCONCLUSIVE, None, 1e-3)


@pytest.mark.parametrize(
    ("sizes", "shares"),
    [((), ()), ((64, 64), (1, 1)), ((64, 256), (1,)), ((0, 5), (1, 1)), ((4,), (0,))],
)
def test_looks_that_make_no_sense_are_refused(sizes, shares):
    with pytest.raises(ValueError, match="increasing sizes"):
        escalate(np.zeros, mean_test, Level(0.1, 1.0), sizes=sizes, shares=shares)
