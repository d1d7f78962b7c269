"""Means and variances in one line: right estimators pass, planted faults fail with their name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from specbp import chebyshev_logdet, hutchinson_trace, rademacher, slq_logdet
from specbp.testing.assertions import assert_unbiased, assert_variance
from tests.support import chebyshev_matrix, geometric, normal, signs, spd

DEGREE, ENDS = 8, (0.05, 1.2)
SMALL, MEDIUM, LARGE = (spd(geometric(n, 10.0)) for n in (6, 10, 16))


def form(A: Tensor) -> Tensor:
    return chebyshev_matrix(A, DEGREE, *ENDS)


def expected(A: Tensor) -> float:
    return float(form(A).trace())


def chebyshev(A: Tensor, X: Tensor) -> object:
    return chebyshev_logdet(A, X, degree=DEGREE, interval=ENDS)


def value(A: Tensor, X: Tensor) -> Tensor:
    return chebyshev(A, X).value


def not_halved(A: Tensor, X: Tensor) -> Tensor:
    """The series of Chebyshev with c₀ in place of c₀/2."""
    return value(A, X) + X.square().sum(0).mean() * -0.7


def not_divided(A: Tensor, X: Tensor) -> Tensor:
    return X.shape[-1] * value(A, X)


def lost_sign(A: Tensor, X: Tensor) -> Tensor:
    return value(A, X).abs()


def one_percent(A: Tensor, X: Tensor) -> Tensor:
    return 1.01 * value(A, X)


ROUTES = {
    "enumeration": (MEDIUM, {}, "D2 mean"),
    "two probes": (SMALL, {"num_probes": 2}, "D2 mean"),
    "multisets": (SMALL[:5, :5], {"num_probes": 3}, "D2 mean"),
    "basis": (LARGE, {"form": form(LARGE), "num_probes": 3}, "D3 mean"),
    "basis, sphere": (LARGE, {"form": form(LARGE), "law": "sphere"}, "D3 mean"),
    "t": (LARGE, {"num_probes": 4}, "S1 mean"),
    "moments": (LARGE, {"num_probes": 4, "form": form(LARGE), "replicates": 700}, "S1 mean"),
    "gaussian": (MEDIUM, {"law": "gaussian", "num_probes": 4}, "S1 mean"),
    "orthogonal": (MEDIUM, {"law": "orthogonal", "num_probes": 3}, "S1 mean"),
}


@pytest.mark.parametrize("route", ROUTES)
def test_the_right_estimator_passes_on_every_route(route):
    A, options, name = ROUTES[route]
    check = assert_unbiased(chebyshev, A, expected(A), **options)
    assert (check.verdict, check.name) == ("PASS", name)


@pytest.mark.parametrize("route", ROUTES)
def test_a_constant_term_is_caught_on_every_route(route):
    A, options, name = ROUTES[route]
    with pytest.raises(AssertionError, match=f"FAIL {name}: the expectation") as caught:
        assert_unbiased(not_halved, A, expected(A), **options)
    text = str(caught.value)
    assert "gap" in text
    assert "evaluations" in text
    assert ("p-value" in text) == name.startswith("S1")


EXACT = ["enumeration", "two probes", "multisets", "basis", "basis, sphere"]


@pytest.mark.parametrize("route", EXACT)
def test_a_bias_of_one_percent_is_caught_exactly(route):
    A, options, _ = ROUTES[route]
    with pytest.raises(AssertionError, match=r"gap .* \(-0.01 of it\)"):
        assert_unbiased(one_percent, A, expected(A), **options)


def test_sampling_cannot_see_one_percent_and_does_not_go_green_blind():
    """Bias of 1 % is 0.1 sd here: R = 614 says PASS for margin 0.2, R = 100 says nothing."""
    with pytest.raises(AssertionError, match="INCONCLUSIVE S1 mean") as caught:
        assert_unbiased(chebyshev, LARGE, expected(LARGE), num_probes=4, replicates=100)
    assert "raise `replicates`" in str(caught.value)
    check = assert_unbiased(
        chebyshev,
        LARGE,
        expected(LARGE),
        num_probes=4,
        replicates=100,
        allow_inconclusive=True,
    )
    assert check.verdict == "INCONCLUSIVE"
    assert check.detectable > check.margin


@pytest.mark.parametrize(
    ("fault", "options", "words"),
    [
        (not_halved, {"form": form(MEDIUM)}, "off by the same 10 × -0.7: a constant term"),
        (not_divided, {"num_probes": 2, "form": form(LARGE)}, "sum over 2 probes is not divided"),
        (lost_sign, {}, "the sign is lost"),
        (lambda A, X: value(A, X) / 2, {}, "a factor of 1/2"),
        (lambda A, X: value(A, X / A.shape[-1] ** 0.5), {}, "a factor n = 10 is missing"),
        (one_percent, {}, "a bias of the method itself"),
    ],
)
def test_the_message_names_the_likely_cause(fault, options, words):
    A = LARGE if options.get("num_probes") else MEDIUM
    with pytest.raises(AssertionError) as caught:
        assert_unbiased(fault, A, expected(A), **options)
    assert words in str(caught.value)
    assert "to do" in str(caught.value)


def test_the_text_of_a_message():
    with pytest.raises(AssertionError) as caught:
        assert_unbiased(lambda A, X: -(X * (A @ X)).sum(), torch.eye(4).double(), 4.0)
    assert str(caught.value) == (
        "FAIL D2 mean: the expectation of the estimate is the expected value\n"
        "  found     exact over 8 evaluations: error 8, limit 5.62e-14\n"
        "  measured  -4\n"
        "  reference 4\n"
        "  gap       -8 (-2 of it)\n"
        "  sample    8 evaluations\n"
        "  likely    the sign is lost: the mean is minus the expected value\n"
        "  to do     if the method promises tr p(A) of a truncated p, expect that, or pass a "
        "`tolerance`; else compare single values with xᵀf(A)x, specbp.exact.quadratic_forms"
    )


def test_truncation_is_a_bias_unless_it_is_tolerated():
    """Four steps of Lanczos on ten eigenvalues: the exact bias over all 512 probes is shown."""
    exact = float(torch.logdet(MEDIUM))

    def slq(A, X):
        return slq_logdet(A, X, num_steps=3)

    with pytest.raises(AssertionError, match="FAIL D2 mean"):
        assert_unbiased(slq, MEDIUM, exact)
    check = assert_unbiased(slq, MEDIUM, exact, tolerance=0.1)
    assert 1e-6 < check.statistic - exact < 0.1


def test_a_reused_sketch_is_caught_by_enumeration():
    """Hutch++ that takes the sketch for the residual too: exact on low rank, biased elsewhere."""

    def hutchpp(A, X, reuse=False):
        sketch, rest = (X, X) if reuse else (X[:, :1], X[:, 1:])
        Q = torch.linalg.qr(A @ sketch).Q
        G = rest - Q @ (Q.mT @ rest)
        return (Q * (A @ Q)).sum() + (G * (A @ G)).sum() / G.shape[-1]

    trace = float(SMALL.trace())
    assert assert_unbiased(hutchpp, SMALL, trace, num_probes=2).name == "D2 mean"
    with pytest.raises(AssertionError, match="FAIL D2 mean"):
        assert_unbiased(lambda A, X: hutchpp(A, X, reuse=True), SMALL, trace)


def test_estimators_that_are_odd_are_averaged_over_both_signs():
    def odd(A, X):
        return (X * (A @ X)).sum() / X.shape[-1] + X[1].sum()

    assert assert_unbiased(odd, MEDIUM, float(MEDIUM.trace())).size == 1024
    # Of several probes the outcomes are too many then: replicates take over.
    assert assert_unbiased(odd, SMALL, float(SMALL.trace()), num_probes=2).name == "S1 mean"


def black_box(A, generator):
    return hutchinson_trace(A, rademacher(A.shape[-1], 4, generator=generator))


def globally(A):
    X = torch.empty(A.shape[-1], 4, dtype=A.dtype).bernoulli_().mul_(2).sub_(1)
    return float((X * (A @ X)).sum() / 4)


@pytest.mark.parametrize("estimator", [black_box, globally])
def test_black_boxes_draw_for_themselves(estimator):
    trace = float(LARGE.trace())
    check = assert_unbiased(estimator, LARGE, trace, law=None)
    assert (check.name, check.size) == ("S1 mean", 614)
    assert check == assert_unbiased(estimator, LARGE, trace, law=None)
    other = assert_unbiased(estimator, LARGE, trace, law=None, key=("another",))
    assert other.statistic != check.statistic
    with pytest.raises(AssertionError, match="FAIL S1 mean"):
        assert_unbiased(estimator, LARGE, 1.1 * trace, law=None)


@pytest.mark.parametrize("law", [None, "rademacher"])
def test_failures_are_reported_and_never_averaged_away(law):
    def sometimes(A, X=None):
        return math.nan if law is None or float(X.sum()) > 4 else 1.0

    with pytest.raises(AssertionError, match="evaluations gave no value: the value is nan"):
        assert_unbiased(sometimes, MEDIUM, 1.0, law=law)


def test_frozen_probes_of_a_black_box_fail():
    frozen = signs(16, 4)
    with pytest.raises(AssertionError, match="FAIL S1 mean"):
        assert_unbiased(
            lambda A: hutchinson_trace(A, frozen), LARGE, float(LARGE.trace()), law=None
        )


def test_false_alarms_come_at_the_stated_rate():
    """400 correct black boxes at level 0.05, t: the rate lies in 0.05 ± 0.04."""

    def draws(A, generator):
        return torch.randn((), generator=generator)

    one = torch.eye(2).double()
    verdicts = []
    for i in range(400):
        try:
            check = assert_unbiased(
                draws,
                one,
                0.0,
                law=None,
                alpha=0.05,
                replicates=20,
                margin=9,
                key=(i,),
                allow_inconclusive=True,
            )
            verdicts.append(check.verdict == "FAIL")
        except AssertionError:
            verdicts.append(True)
    assert abs(np.mean(verdicts) - 0.05) < 0.04


VARIANCES = {
    "enumeration": (MEDIUM, {}, "D2 variance"),
    "two probes": (SMALL, {"num_probes": 2}, "D2 variance"),
    "array": (LARGE, {}, "D4 variance"),
    "sphere design": (LARGE, {"law": "sphere"}, "D4 variance"),
    "gaussian design": (MEDIUM, {"law": "gaussian"}, "D4 variance"),
    "replicates": (LARGE, {"num_probes": 4}, "S2 variance"),
    "gaussian": (MEDIUM, {"law": "gaussian", "num_probes": 4}, "S2 variance"),
}


@pytest.mark.parametrize("route", VARIANCES)
def test_the_right_variance_passes_and_a_wrong_form_fails(route):
    A, options, name = VARIANCES[route]
    check = assert_variance(chebyshev, A, form(A), **options)
    assert (check.verdict, check.name) == ("PASS", name)
    with pytest.raises(AssertionError, match=f"FAIL {name}"):
        assert_variance(chebyshev, A, 1.3 * form(A), **options)


def antithetic(A, generator):
    X = rademacher(A.shape[-1], 2, generator=generator)
    return hutchinson_trace(A, torch.cat([X, -X], -1))


@pytest.mark.parametrize(
    ("estimator", "options", "words"),
    [
        (antithetic, {"draws": True, "num_probes": 4}, "pairs ±x are counted as two probes"),
        (lambda A: 3.0, {"draws": True, "num_probes": 4}, "does not depend on the probes"),
        (lambda A, X: hutchinson_trace(A, X[:, :1]), {"num_probes": 4}, "only one of 4 probes"),
        (
            lambda A, g: hutchinson_trace(A, normal(16, 1, seed=g.initial_seed() % 1000)),
            {"draws": True},
            "probes of another law",
        ),
    ],
)
def test_planted_faults_of_the_variance_are_named(estimator, options, words):
    A = torch.diag(torch.linspace(1, 3, 16)).double() + 0.02
    with pytest.raises(AssertionError) as caught:
        assert_variance(estimator, A, A, **options)
    assert words in str(caught.value)


def test_a_constant_has_no_variance():
    A = 3 * torch.eye(8).double()
    assert assert_variance(hutchinson_trace, A, A).verdict == "PASS"
    assert assert_variance(hutchinson_trace, A, A, num_probes=5).verdict == "PASS"
    with pytest.raises(AssertionError, match="FAIL"):
        assert_variance(lambda A, X: X[0, 0] * X[1, 0], A, A)


def test_laws_without_closed_form_are_refused():
    with pytest.raises(ValueError, match="law must be one of"):
        assert_variance(hutchinson_trace, MEDIUM, MEDIUM, law="orthogonal")
    with pytest.raises(ValueError, match="law must be one of"):
        assert_unbiased(hutchinson_trace, MEDIUM, 1.0, law="uniform")


def test_float32_is_judged_by_its_own_rounding():
    A = MEDIUM.float()
    assert assert_unbiased(chebyshev, A, expected(MEDIUM)).margin > 1e-4
    with pytest.raises(AssertionError, match="FAIL"):
        assert_unbiased(one_percent, A, expected(MEDIUM))
