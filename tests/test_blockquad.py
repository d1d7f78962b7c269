"""The block estimators: unbiased by enumeration, against a dense twin, exact cases, laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbp.blockquad import block_golub_kahan_logdet, block_slq_logdet
from specbp.estimate import Status
from specbp.logdets import slq_logdet
from specbp.testing.designs import sign_tuples
from tests.support import (
    EPS,
    f32,
    f64,
    factor,
    flags,
    geometric,
    log_forms_of_factor,
    normal,
    orthonormal,
    signs,
)

ESTIMATORS = {
    "A": lambda J, X, **config: block_slq_logdet(J.mT @ J, X, **config),
    "J": lambda J, X, **config: block_golub_kahan_logdet(J, X, **config),
}
either = pytest.mark.parametrize("on", list(ESTIMATORS))


def log_det(J):
    return float(2 * torch.linalg.svdvals(J.double()).log().sum())


def few_distinct(values, n, seed=0):
    """A factor of a matrix with these eigenvalues, each repeated, in a random basis."""
    Q = orthonormal(n, n, seed)
    return torch.tensor(values, dtype=f64).repeat(n)[:n].sort().values.sqrt().unsqueeze(-1) * Q.mT


# The whole law ------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("extrapolate", [False, True])
@pytest.mark.parametrize(("n", "m", "groups"), [(6, 2, 2), (6, 2, 5), (5, 3, 2), (5, 3, 3)])
def test_unbiased_over_every_tuple_of_signs(on, n, m, groups, extrapolate):
    """Two eigenvalues: two steps hold every form, and equal probes leave the space unfilled."""
    J, design = few_distinct((4.0, 0.5), n), sign_tuples(n, m)
    config = {"num_steps": 2, "groups": groups, "extrapolate": extrapolate}
    found = ESTIMATORS[on](J, design.probes, **config)
    assert design.mean(found.value) == pytest.approx(log_det(J), abs=1e-9)
    assert design.variance(found.value) > 1e-3
    filled = (found.status & int(Status.INVARIANT_SUBSPACE)) != 0
    assert bool(filled.any()) == (m == 3)
    assert not bool(filled.all())


@either
@pytest.mark.parametrize("k", [3, 4, 6])
def test_unbiased_after_the_space_has_closed(on, k):
    """What is rounding after two steps must not lead the others' space into the probe's own."""
    J, design = few_distinct((4.0, 0.5), 6), sign_tuples(6, 2)
    found = ESTIMATORS[on](J, design.probes, num_steps=k)
    assert design.mean(found.value) == pytest.approx(log_det(J), abs=1e-8)


def test_unbiased_over_every_tuple_in_float32():
    J, design = few_distinct((4.0, 0.5), 5).to(f32), sign_tuples(5, 3)
    found = block_golub_kahan_logdet(J, design.probes.to(f32), num_steps=2)
    assert design.mean(found.value) == pytest.approx(log_det(J), abs=1e-4)


# A dense twin -------------------------------------------------------------------------------------


def logarithm(A):
    values, V = np.linalg.eigh(A)
    return (V * np.log(values)) @ V.T


def krylov_basis(A, X, k):
    """Orthonormal basis of the block Krylov space: one Gram–Schmidt vector after the other."""
    Q, block = np.zeros((len(A), 0)), X
    for _ in range(k):
        new = []
        for x in block.T:
            x = x / np.linalg.norm(x)
            for _ in range(3):
                x = x - Q @ (Q.T @ x)
            if np.linalg.norm(x) > 1e-9:
                new.append(x / np.linalg.norm(x))
                Q = np.column_stack([Q, new[-1]])
        block = A @ np.array(new).T
    return Q


def twin(A, X, k, groups):
    """The samples, by the formula of the docstring with n × n logarithms."""
    n, s = X.shape
    W, samples = krylov_basis(A, X, k), np.zeros(s)
    whole = W @ logarithm(W.T @ A @ W) @ W.T
    for part in np.array_split(np.arange(s), groups):
        others = np.delete(X, part, axis=1)
        V = krylov_basis(A, others, k)
        inner = logarithm(V.T @ A @ V)
        seen = np.mean([y @ V @ inner @ V.T @ y for y in others.T])
        c = (seen - np.trace(inner)) / (n - V.shape[1])
        L = V @ inner @ V.T + c * (np.eye(n) - V @ V.T)
        for i in part:
            samples[i] = X[:, i] @ whole @ X[:, i] + np.trace(L) - X[:, i] @ L @ X[:, i]
    return torch.from_numpy(samples)


@either
@pytest.mark.parametrize(("s", "groups"), [(2, 2), (4, 2), (5, 5), (7, 3), (7, 5)])
@pytest.mark.parametrize("k", [1, 4])
def test_samples_are_those_of_the_definition(on, s, groups, k):
    J, X = factor(geometric(40, 5.0), 50), normal(40, s)
    found = ESTIMATORS[on](J, X, num_steps=k, groups=groups, extrapolate=False)
    truth = twin((J.mT @ J).numpy(), X.numpy(), k, groups)
    torch.testing.assert_close(found.samples, truth, rtol=0, atol=1e-9)
    assert float(found.value) == pytest.approx(float(truth.mean()), abs=1e-9)
    if s > 2:
        inflated = math.sqrt(1 + s * k / 40 * s / (s - 2))
        error = float(truth.std() / s**0.5) * inflated
        assert float(found.standard_error) == pytest.approx(error, rel=1e-9)


@either
def test_more_groups_than_probes_leave_one_out(on):
    J, X = factor(geometric(40, 5.0), 50), signs(40, 4)
    one, other = (ESTIMATORS[on](J, X, num_steps=4, groups=g) for g in (4, 9))
    torch.testing.assert_close(one.samples, other.samples, rtol=0, atol=0)


@either
def test_order_and_signs_of_the_probes_do_not_matter_when_each_is_a_group(on):
    J, X = factor(geometric(40, 5.0), 50), signs(40, 5)
    one = ESTIMATORS[on](J, X, num_steps=4)
    other = ESTIMATORS[on](J, -X[:, [3, 0, 4, 2, 1]], num_steps=4)
    torch.testing.assert_close(one.samples[[3, 0, 4, 2, 1]], other.samples, rtol=0, atol=1e-9)
    torch.testing.assert_close(one.truncation, other.truncation, rtol=1e-6, atol=1e-9)


@either
def test_extrapolation_leaves_the_bracket_alone(on):
    J, X = factor(geometric(60, 10.0), 70), signs(60, 4)
    lower = 0.5e-2
    raw, shifted = (
        ESTIMATORS[on](J, X, num_steps=8, lower=lower, extrapolate=e) for e in (False, True)
    )
    shift = raw.value - shifted.value
    assert float(shift) > 1e-6
    for name in ("lower", "upper"):
        torch.testing.assert_close(getattr(shifted, name), getattr(raw, name))
    assert float(raw.lower) <= float(shifted.value) <= float(raw.upper)
    assert float(raw.truncation) >= float(shift)


# Exact cases --------------------------------------------------------------------------------------

SPECTRA = {
    "geometric": lambda n: geometric(n, 30.0),
    "uniform": lambda n: torch.linspace(1, 2, n, dtype=f64),
    "outlier": lambda n: torch.cat([torch.tensor([4.0], dtype=f64), torch.linspace(1, 2, n - 1)]),
}


@either
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("name", list(SPECTRA))
@pytest.mark.parametrize("s", [1, 3, 7, 41])
def test_exact_when_the_space_is_filled(on, dtype, name, s):
    J = factor(SPECTRA[name](30), 36).to(dtype)
    found = ESTIMATORS[on](J, normal(30, s, seed=2, dtype=dtype), num_steps=30)
    assert flags(found) == Status.INVARIANT_SUBSPACE
    rounding = 2000 * EPS[dtype] * (30 if on == "A" else 1)
    assert float(found.value) == pytest.approx(log_det(J), abs=rounding)
    assert float(found.standard_error) == 0
    assert float(found.lower) == float(found.upper) == float(found.value)
    assert float(found.truncation) == 0
    # An estimator without error has an interval without length.
    assert found.interval().lower == found.interval().upper


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("s", [1, 2, 5])
@either
def test_tiny_matrices(on, n, s):
    J = factor(torch.linspace(1, 2, n, dtype=f64), n + 1)
    found = ESTIMATORS[on](J, normal(n, s), num_steps=n)
    assert float(found.value) == pytest.approx(log_det(J), abs=1e-10)


@either
@pytest.mark.parametrize("dtype", [f32, f64])
def test_multiple_of_the_identity_needs_one_step(on, dtype):
    """Every form is |x|² log c: exact for signs, whatever the space holds."""
    J = (3 * orthonormal(20, 20)).to(dtype)
    found = ESTIMATORS[on](J, signs(20, 4, dtype=dtype), num_steps=4)
    assert float(found.value) == pytest.approx(20 * math.log(9), abs=1000 * EPS[dtype])
    assert float(found.standard_error) <= 1000 * EPS[dtype]


# Laws ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", list(ESTIMATORS))
@settings(max_examples=15)
@given(exponent=st.floats(-18, 18), dtype=st.sampled_from([f32, f64]), k=st.integers(1, 8))
def test_scaling_shifts_by_n_log_c(on, exponent, dtype, k):
    """In float32 the squares of these products leave its range."""
    J, X = factor(geometric(24, 4.0), 30).to(dtype), signs(24, 4, dtype=dtype)
    if on == "A":
        A = J.mT @ J
        one = block_slq_logdet(A, X, num_steps=k)
        other = block_slq_logdet(10**exponent * A, X, num_steps=k)
        shift = 24 * math.log(10**exponent)
    else:
        one = block_golub_kahan_logdet(J, X, num_steps=k)
        other = block_golub_kahan_logdet(10**exponent * J, X, num_steps=k)
        shift = 48 * math.log(10**exponent)
    assert float(other.value - one.value) == pytest.approx(shift, abs=3e4 * EPS[dtype])
    assert int(other.status) == int(one.status)
    torch.testing.assert_close(
        other.standard_error, one.standard_error, rtol=0, atol=3e4 * EPS[dtype], equal_nan=True
    )


@either
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("c", [1e-20, 1e-4, 1e10, 1e18])
def test_lost_directions_leave_the_scale_alone(on, dtype, c):
    """The identity that stands for them in T is neither small nor large beside A."""
    J, X = factor(geometric(23, 4.0), 30).to(dtype), signs(23, 5, dtype=dtype)
    one, other = (ESTIMATORS[on](r * J, X, num_steps=23) for r in (1.0, c**0.5))
    assert flags(one) == flags(other) == Status.INVARIANT_SUBSPACE
    shift = 23 * math.log(c)
    assert float(other.value - one.value) == pytest.approx(shift, abs=3e4 * EPS[dtype])


@either
def test_half_the_length_of_all_probes_quarters_their_forms(on):
    """Only coordinates and dimensions enter: the space does not see lengths."""
    J, X = factor(geometric(24, 4.0), 30), signs(24, 4)
    rows = [ESTIMATORS[on](J, c * X, num_steps=6) for c in (1.0, 1e-9, 1e9)]
    for found in rows:
        assert flags(found) == Status.INVARIANT_SUBSPACE
        assert float(found.value) == pytest.approx(log_det(J), abs=1e-9)


# The bracket --------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("k", [2, 5, 9])
def test_bracket_holds_what_the_probes_give_without_truncation(on, k):
    J, X = factor(geometric(80, 8.0), 90), signs(80, 5)
    lower = 0.9 / 64
    found = ESTIMATORS[on](J, X, num_steps=k, lower=lower, extrapolate=False)
    again = ESTIMATORS[on](J, X, num_steps=k, extrapolate=False)
    forms = log_forms_of_factor(J, X)
    gauss = twin_forms(J, X, k)
    without = float(found.value - (gauss - forms).mean())
    assert float(found.lower) <= without + 1e-9
    assert without <= float(found.upper) + 1e-9
    assert float(found.upper) == float(found.value) == float(again.value)
    assert float(again.lower) == -torch.inf


def twin_forms(J, X, k):
    A = (J.mT @ J).numpy()
    W = krylov_basis(A, X.numpy(), k)
    inner = logarithm(W.T @ A @ W)
    return torch.from_numpy(np.einsum("is,ij,js->s", X.numpy(), W @ inner @ W.T, X.numpy()))


def test_bracket_narrows_with_steps_and_is_one_point_in_the_end():
    J, X = factor(geometric(80, 8.0), 90), signs(80, 5)
    widths = []
    for k in (2, 5, 9, 14):
        found = block_golub_kahan_logdet(J, X, num_steps=k, lower=0.9 / 64)
        widths.append(float(found.upper - found.lower))
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 1
    assert widths[-1] < 1e-3


@either
def test_lower_end_above_a_ritz_value_is_unknown(on):
    J, X = factor(geometric(40, 5.0), 50), signs(40, 4)
    assert float(ESTIMATORS[on](J, X, num_steps=8, lower=0.9).lower) == -torch.inf


@either
def test_shared_space_truncates_less_than_one_for_each_probe(on):
    J, X = factor(geometric(200, 30.0), 210), signs(200, 5)
    forms = float(log_forms_of_factor(J, X).mean())
    single = float(slq_logdet(J.mT @ J, X, num_steps=8).value) - forms
    shared = float((twin_forms(J, X, 8) - log_forms_of_factor(J, X)).mean())
    assert 0 < 1.2 * shared < single
