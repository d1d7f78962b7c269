"""Differences know their error: it covers the truth, and it is small where it can be."""

from __future__ import annotations

import math

import pytest
import torch

from specbp.testing.differences import directional_derivative
from tests.support import normal

ONE = torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "at", "slope"),
    [
        (torch.exp, 1.0, math.e),
        (torch.log, 1e-3, 1e3),
        (torch.sin, 40.0, math.cos(40.0)),
        (lambda t: t**5, 0.0, 0.0),
        (lambda t: (100 * t).tanh(), 0.01, 100 / math.cosh(1.0) ** 2),
        (lambda t: 3 * t + 1e6, 2.0, 3.0),
    ],
)
def test_the_error_covers_the_truth(function, at, slope):
    value, error = directional_derivative(
        lambda t: float(function(t)), at * ONE, ONE, target=1e-6 * max(slope, 1)
    )
    assert abs(value - slope) <= error
    assert error <= 1e-4 * max(slope, 1)


def test_several_variables_and_directions():
    theta, d = normal(3, 4), normal(3, 4, seed=1)
    d = d / d.norm()
    value, error = directional_derivative(lambda t: float(t.square().sum()), theta, d, target=1e-9)
    assert abs(value - 2 * float((theta * d).sum())) <= error < 1e-8


def test_a_function_that_is_not_defined_has_no_derivative():
    value, error = directional_derivative(lambda t: math.nan, ONE, ONE, target=1e-6)
    assert math.isnan(value)
    assert error == math.inf


def test_a_step_that_leaves_the_domain_is_shortened():
    """log det of a matrix with an eigenvalue of 1e-6 next to one of 1."""
    theta = torch.tensor([1e-6, 1.0], dtype=torch.float64)
    d = torch.tensor([1.0, 0.0], dtype=torch.float64)
    value, error = directional_derivative(
        lambda t: float(t.log().sum()) if t.min() > 0 else math.nan, theta, d, target=1.0
    )
    assert abs(value - 1e6) <= error < 100.0


def test_noise_is_not_taken_for_agreement():
    """Values rounded to 1e-3: over 200 points the stated error covers the truth every time."""

    def rough(t: torch.Tensor) -> float:
        return round(float(t.exp()) * 1e3) / 1e3

    misses = 0
    for i in range(200):
        at = (1 + i / 200) * ONE
        value, error = directional_derivative(rough, at, ONE, target=1e-6)
        misses += abs(value - float(at.exp())) > error + 1e-3 * float(at.exp()) / 2
    assert misses <= 4
