"""Gradients in one line: derivative of the value, and its expectation; planted faults are named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specbp import rademacher
from specbp.testing.assertions import assert_gradient
from tests.support import generator, normal, signs

n = 8
BASE = normal(n, n, seed=3)
THETA = normal(5, seed=4) / 5
X = signs(n, 3, seed=5)


def matrix(theta: Tensor) -> Tensor:
    """Symmetric, positive definite, with five parameters."""
    parts = torch.stack([torch.roll(BASE, i, 1) + torch.roll(BASE, i, 1).mT for i in range(5)])
    S = torch.einsum("i,ijk->jk", theta, parts) / n
    return S @ S + torch.eye(n).double() + theta.sum() ** 2 * BASE @ BASE.mT / n


def series(theta: Tensor, X: Tensor, detach: bool = False) -> Tensor:
    """xᵀp(A)x of log A = 2 log L − Σ (I − A/L²)^k / k to degree four, scaled by L² = tr A."""
    A = matrix(theta)
    scale = A.trace().detach() if detach else A.trace()
    E = torch.eye(n).double() - A / scale
    Y, total = X, X.square().sum() * scale.log()
    for k in range(1, 5):
        Y = E @ Y
        total = total - (X * Y).sum() / k
    return total / X.shape[-1]


def mean_gradient() -> Tensor:
    theta = THETA.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(series(theta, n**0.5 * torch.eye(n).double()), theta)
    return gradient


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.factor * gradient, None


def test_the_right_gradient_passes_with_accuracy_to_spare():
    check = assert_gradient(series, THETA, X)
    assert check.verdict == "PASS"
    assert check.detectable < 1e-3


def test_the_expectation_is_checked_over_a_basis_and_over_all_signs():
    check = assert_gradient(series, THETA, X, expected=mean_gradient())
    assert (check.name, check.size) == ("D6 gradient mean", n)
    check = assert_gradient(series, THETA, X[:, :1], expected=mean_gradient())
    assert (check.name, check.size) == ("D2 gradient mean", 128)


@pytest.mark.parametrize("factor", [0.99, 1.0015, -1.0, 0.0])
def test_a_scaled_gradient_is_caught_and_its_factor_named(factor):
    with pytest.raises(AssertionError, match="FAIL D6 gradient") as caught:
        assert_gradient(lambda t, X: Scaled.apply(series(t, X), factor), THETA, X)
    assert f"the gradient is {factor:g} times the right one in every direction" in str(caught.value)
    assert ("the sign is lost" in str(caught.value)) == (factor == -1.0)


def test_a_part_that_is_detached_is_caught():
    with pytest.raises(AssertionError, match="part of the graph is detached"):
        assert_gradient(lambda t, X: series(t, X, detach=True), THETA, X)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda t, X: series(t, X).detach(), "does not require grad: it is detached"),
        (lambda t, X: series(t.detach(), X), "does not require grad: it is detached"),
        (lambda t, X: series(t.detach(), X) + torch.zeros(1).requires_grad_(), "θ is not in it"),
        (lambda t, X: float(series(t, X).detach()), "no scalar tensor but float"),
        (lambda t, X: t, "no scalar tensor but Tensor"),
        (lambda t, X: (t - t.detach()).norm() + series(t, X), "contains NaN or inf"),
    ],
)
def test_a_value_without_gradient_is_named(function, words):
    if words.startswith("contains"):
        original, function = function, lambda t, X: original(t, X) + (t.sum() * 0).sqrt()
    with pytest.raises(AssertionError, match=words) as caught:
        assert_gradient(function, THETA, X)
    assert "create_graph=True" in str(caught.value)


def test_probes_that_are_not_frozen_are_caught():
    own = generator(1)

    def fresh(theta, X):
        return series(theta, rademacher(n, 3, generator=own))

    with pytest.raises(AssertionError, match="changes between two calls") as caught:
        assert_gradient(fresh, THETA, X)
    assert "use the probes that are passed" in str(caught.value)


def test_a_wrong_expectation_is_caught():
    with pytest.raises(AssertionError, match="FAIL D6 gradient mean") as caught:
        assert_gradient(series, THETA, X, expected=1.01 * mean_gradient())
    assert "0.990099 times the right one" in str(caught.value)
    twisted = mean_gradient().flip(0)
    with pytest.raises(AssertionError, match="cosine"):
        assert_gradient(series, THETA, X, expected=twisted)


def test_a_direction_without_change_is_compared_at_the_usual_size():
    """The value does not depend on the last parameter, and neither does its gradient."""
    theta = torch.cat([THETA, torch.ones(1).double()])
    last = torch.eye(6).double()[5]

    def function(theta, X):
        return series(theta[:5], X) + 0 * theta[5]

    assert assert_gradient(function, theta, X, directions=[last]).verdict == "PASS"


def test_differences_that_are_too_inaccurate_do_not_pass():
    def rough(theta, X):
        value = series(theta, X)
        return value + (value.mul(1e3).round().div(1e3) - value).detach()

    with pytest.raises(AssertionError, match="INCONCLUSIVE D6 gradient") as caught:
        assert_gradient(rough, THETA, X)
    assert "the differences are too inaccurate" in str(caught.value)
    check = assert_gradient(rough, THETA, X, allow_inconclusive=True)
    assert check.detectable > check.margin


def test_float32_passes_at_its_own_accuracy():
    def single(theta, X):
        return series(theta.double(), X.double()).float()

    assert assert_gradient(single, THETA.float(), X.float(), margin=0.02).verdict == "PASS"
    with pytest.raises(AssertionError):
        assert_gradient(
            lambda t, X: Scaled.apply(single(t, X), 0.9), THETA.float(), X.float(), margin=0.02
        )


def test_five_percent_of_a_gradient_are_seen_in_float32():
    D = torch.linspace(1, 3, 500)

    def function(theta, X):
        return (X.square() * (theta * D)[:, None]).sum() / X.shape[-1]

    theta, probes = torch.ones(500), signs(500, 2).float()
    options = {"margin": 0.05, "directions": 1}
    assert assert_gradient(function, theta, probes, expected=D, **options).verdict == "PASS"
    with pytest.raises(AssertionError, match="FAIL D6 gradient mean"):
        assert_gradient(function, theta, probes, expected=1.05 * D, **options)


def test_rounding_that_hides_an_expected_gradient_does_not_pass():
    """Gradients of single probes are 1e6 times their mean: float32 cannot see a part in 100."""

    def function(theta, X):
        return theta.sum() * (1 + 1e6 * X[0, 0] * X[1, 0])

    theta, probes = torch.ones(3), signs(4, 1).float()
    options = {"expected": torch.ones(3), "margin": 0.01}
    with pytest.raises(AssertionError, match=r"(?s)INCONCLUSIVE D2 gradient mean.*use float64"):
        assert_gradient(function, theta, probes, **options)
    check = assert_gradient(function, theta, probes, **options, allow_inconclusive=True)
    assert check.verdict == "INCONCLUSIVE"


def test_gradients_that_are_odd_are_averaged_over_both_signs():
    def odd(theta, X):
        return (X.square() * theta[:, None]).sum() + (X * theta[:, None].square()).sum()

    theta = torch.linspace(1, 2, 4).double()
    check = assert_gradient(odd, theta, signs(4, 1), expected=torch.ones(4).double())
    assert (check.verdict, check.size) == ("PASS", 16)
