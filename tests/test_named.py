"""Methods by name: one estimand whatever the method, and arguments that are used or refused."""

from __future__ import annotations

import pytest
import torch

from specbp import Jacobian, JacobianMetric, generator_for, logdet
from specbp.methods import METHODS
from tests.support import f64, geometric, spd

A = spd(geometric(24, 1e2))
NAMES = [name for name, row in METHODS.items() if row.estimand == "logdet" and row.claims.gated]


def call(operator, method, **arguments):
    return logdet(operator, method=method, generator=generator_for("named"), **arguments)


def square_map(z):
    return z @ A


@pytest.mark.parametrize("name", NAMES)
def test_a_square_matrix_and_a_square_factor_are_never_confused(name):
    row = METHODS[name]
    if row.needs and row.needs != ("lower",) or row.survival or row.name == "algorithm1":
        with pytest.raises(ValueError, match=f"{name} needs"):
            call(A, name)
        return
    J = Jacobian(square_map, torch.zeros(24, dtype=f64))
    twice = 2 * float(torch.logdet(A))
    if row.on == "J":
        with pytest.raises(ValueError, match=r"pass JacobianMetric\(J\)"):
            call(A, name)
        found = [call(J, name, num_probes=12), call(JacobianMetric(A), name, num_probes=12)]
    elif row.on == "A":
        found = [call(J, name, num_probes=12)]
    else:
        found = []
    for estimate in found:
        error = 4 * float(estimate.standard_error.nan_to_num(5)) + 8
        assert float(estimate.value) == pytest.approx(twice, abs=error)


def test_default_steps_fit_a_small_matrix_and_given_ones_are_meant():
    small = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=f64))
    found = call(small, "slq", num_probes=3)
    assert float(found.value) == pytest.approx(float(torch.logdet(small)), abs=1e-9)
    with pytest.raises(ValueError, match="num_steps must be between 1 and n = 3, got 9"):
        call(small, "slq", num_steps=9)


@pytest.mark.parametrize(
    "asked", [{"rtol": 0.1}, {"atol": 1.0}, {"per_dimension": 1.0}, {"budget": 9}, {"max_bytes": 9}]
)
def test_what_only_the_planner_obeys_is_refused(asked):
    with pytest.raises(ValueError, match='are for method "auto"'):
        call(A, "slq", **asked)


@pytest.mark.parametrize("method", ["auto", "slq"])
def test_probes_come_from_a_generator_alone(method):
    with pytest.raises(ValueError, match=r"Pass a torch\.Generator"):
        logdet(A, method=method, generator=None)


def test_too_few_probes_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="needs 2 probes, got 1"):
        call(A, "multilevel", num_probes=1)
    with pytest.raises(ValueError, match='method is "auto" or one of'):
        call(A, "lanczos")
