"""The table of methods: complete, true to its claims, and every row obeys the laws of log det."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import specbp
from specbp.methods import METHODS, Claims, Method
from specbp.operators import CountingOperator
from tests.support import (
    all_signs,
    f32,
    f64,
    geometric,
    log_forms,
    normal,
    orthonormal,
    signs,
    spd,
)

ROWS = list(METHODS.values())
PROBED = [row for row in ROWS if row.uses_probes]
LOGDETS = [row for row in ROWS if row.estimand == "logdet"]
MATRIX_FREE = [row for row in PROBED if row.on == "A"]
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_probed = pytest.mark.parametrize("row", PROBED, ids=lambda row: row.name)
each_logdet = pytest.mark.parametrize("row", LOGDETS, ids=lambda row: row.name)
SMALL = {"num_steps": 4, "degree": 9, "power_steps": 3}


def knowledge(row: Method, low: Any, high: Any) -> dict[str, Any]:
    """What the row needs to know of a spectrum in [low, high]."""
    values = {"interval": (low, high), "lower": low, "upper": high}
    return {name: values[name] for name in row.needs}


def operand(row: Method, A):
    """A itself, or a factor J with A = JᵀJ."""
    return torch.linalg.cholesky(A).mT if row.on == "J" else A


def run(row: Method, A, X, *, low=None, high=None, **config):
    """The row on A, with small defaults and an interval that holds the spectrum."""
    eigenvalues = torch.linalg.eigvalsh(A.double())
    low = 0.8 * eigenvalues[..., 0] if low is None else low
    high = 1.2 * eigenvalues[..., -1] if high is None else high
    chosen = {name: SMALL.get(name, value) for name, value in row.config.items()} | config
    arguments = (operand(row, A), X) if row.uses_probes else (operand(row, A),)
    return row.estimate(*arguments, **chosen, **knowledge(row, low, high))


def matrix(n=8, cond=10.0, seed=0):
    return spd(geometric(n, cond), seed)


# The table itself ---------------------------------------------------------------------------------


def test_keys_are_the_names_and_rows_are_distinct():
    assert list(METHODS) == [row.name for row in ROWS]
    calls = {(row.estimate, str(sorted(row.config.items()))) for row in ROWS}
    assert len(calls) == len(ROWS)


def test_every_public_estimator_has_a_row():
    public = {name for name in specbp.__all__ if name.endswith(("_logdet", "_trace"))}
    assert public == {row.estimate.__name__ for row in ROWS}
    assert all(getattr(specbp, row.estimate.__name__) is row.estimate for row in ROWS)


@each_row
def test_fields_a_reader_sees_are_filled_in(row):
    assert row.summary
    assert row.summary == row.summary.strip()
    assert len(row.summary) < 100
    assert any(char.isdigit() for char in row.source)  # a year
    assert row.on in ("A", "J", "dense A")
    assert row.estimand in ("logdet", "trace")
    assert row.estimate.__name__.endswith(row.estimand)
    assert set(row.claims.bracket) <= {"lower", "upper"}
    assert row.claims.expectation in inspect.getdoc(Claims)


@each_row
def test_config_and_needs_are_parameters_of_the_estimator(row):
    parameters = inspect.signature(row.estimate).parameters
    for name in (*row.config, *row.needs):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    required = {
        name
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    }
    assert required <= {*row.config, *row.needs}
    assert ("probes" in parameters) == row.uses_probes
    assert not set(row.config) & set(row.needs)


# Claims -------------------------------------------------------------------------------------------


@each_row
@pytest.mark.parametrize(("n", "m"), [(12, 1), (12, 5), (20, 3)])
@pytest.mark.parametrize("size", [3, 8, 10])
def test_products_counted_are_the_products_claimed(row, n, m, size):
    A, X = matrix(n), signs(n, m, seed=1)
    sizes = {"num_steps": size, "degree": size, "power_steps": 6}
    config = {name: sizes.get(name, value) for name, value in row.config.items()}
    counter = CountingOperator(operand(row, A))
    est = run(row, A, X, **config)
    if row.on != "dense A":
        arguments = (counter, X) if row.uses_probes else (counter,)
        row.estimate(*arguments, **config, **knowledge(row, 0.08, 1.2))
        spent = counter.num_gram_matvecs if row.on == "J" else counter.num_matvecs
        assert spent == est.num_matvecs
    assert est.num_matvecs == row.claims.matvecs(n, m, config)


@pytest.mark.parametrize("name", ["algorithm1", "algorithm1_plain"])
def test_products_claimed_when_the_matrix_is_smaller_than_power_steps(name):
    row, config = METHODS[name], METHODS[name].config | {"degree": 9, "power_steps": 10}
    est = run(row, matrix(4), signs(4, 3), **config)
    assert est.num_matvecs == row.claims.matvecs(4, 3, config)


@each_row
def test_bracket_claimed_holds_and_no_other_is_reported(row):
    A = matrix(30, 50.0)
    X = signs(40, 30, 1, seed=2)
    truth = log_forms(A, X.squeeze(-1).mT) if row.uses_probes else torch.logdet(A)
    est = run(row, A, X)
    slack = 1e-10
    if row.claims.expectation == "exact":
        assert float(est.lower) == float(est.upper) == float(est.value)
        assert float(est.value) == pytest.approx(float(truth), abs=slack)
    else:
        assert bool(torch.isfinite(est.lower).all()) == ("lower" in row.claims.bracket)
        assert bool(torch.isfinite(est.upper).all()) == ("upper" in row.claims.bracket)
        if row.claims.bracket:
            assert bool((est.lower <= truth + slack).all())
            assert bool((truth <= est.upper + slack).all())


@pytest.mark.parametrize(
    "row", [r for r in PROBED if r.claims.calibrated], ids=lambda row: row.name
)
def test_standard_error_claimed_calibrated_is(row):
    """E[se²] = Var over all pairs of sign vectors."""
    A, X = matrix(5), all_signs(5)
    pairs = torch.stack([X.unsqueeze(2).expand(5, 16, 16), X.unsqueeze(1).expand(5, 16, 16)], -1)
    est = run(row, A, pairs.permute(1, 2, 0, 3).reshape(256, 5, 2))
    ratio = float(est.standard_error.square().mean() / est.value.var(correction=0))
    # Exact for independent values. Those of Algorithm 1 share the bound found from the first
    # probe: to 1e-4 no matter if it holds, to 4 % if the polynomial explodes beyond it.
    slack = 1e-9 if row.claims.additive else 1e-3 if row.claims.gated else 0.05
    assert ratio == pytest.approx(1, abs=slack)


@each_probed
def test_additive_rows_are_means_of_their_probes(row):
    A, X = matrix(), signs(8, 6, seed=3)
    whole = run(row, A, X)
    singles = torch.cat([run(row, A, X[:, i : i + 1]).samples for i in range(6)])
    same = bool(torch.allclose(whole.samples, singles, rtol=0, atol=1e-10))
    assert same == row.claims.additive
    assert float(whole.value) == pytest.approx(float(whole.samples.mean()), abs=1e-12)


# Laws ---------------------------------------------------------------------------------------------


@each_probed
@given(seed=st.integers(0, 10**6), c=st.floats(1e-3, 1e3))
def test_even_and_homogeneous_in_the_probes(row, seed, c):
    A, X = matrix(), normal(8, 3, seed=seed)
    est = run(row, A, X)
    negated = run(row, A, -X)
    torch.testing.assert_close(negated.samples, est.samples, rtol=1e-14, atol=1e-14)
    scaled = run(row, A, c * X)
    scale = float(est.samples.abs().max()) + float(X.square().sum(0).max())
    assert float((scaled.samples / c**2 - est.samples).abs().max()) <= 1e-10 * scale


@each_logdet
@given(c=st.floats(1e-6, 1e6), seed=st.integers(0, 100))
def test_scaling_the_matrix_adds_its_log_times_the_squared_norm(row, c, seed):
    A, X = matrix(seed=seed), signs(8, 3, seed=seed)
    est, scaled = run(row, A, X), run(row, c * A, X)
    expected = est.value + 8 * math.log(c)
    # The plain Algorithm 1 explodes, and its rounding with it.
    scale = float(est.samples.abs().max()) if row.uses_probes else 1
    assert abs(float(scaled.value - expected)) <= 1e-10 * (1 + scale + 8 * abs(math.log(c)))


@each_probed
@given(seed=st.integers(0, 10**6))
def test_rotating_matrix_and_probes_together_changes_nothing(row, seed):
    A, X, Q = matrix(), normal(8, 3, seed=seed), orthonormal(8, 8, seed)
    B = Q @ A @ Q.mT
    B = (B + B.mT) / 2
    ends = {"low": 0.08, "high": 1.2}
    left, right = run(row, A, X, **ends), run(row, B, Q @ X, **ends)
    bound = 1e-10 * (1 + float(X.square().sum(0).max()))
    assert float((left.samples - right.samples).abs().max()) <= bound


@each_probed
@given(order=st.permutations(range(1, 6)))
def test_permuting_the_probes_permutes_their_values(row, order):
    # The first probe stays: Algorithm 1 starts its bound from it.
    A, X, order = matrix(), signs(8, 6, seed=4), [0, *order]
    left, right = run(row, A, X).samples[order], run(row, A, X[:, order]).samples
    torch.testing.assert_close(left, right, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "row", [r for r in MATRIX_FREE if r.claims.expectation[:2] == "tr"], ids=lambda row: row.name
)
@given(seed=st.integers(0, 10**6))
def test_blocks_add(row, seed):
    A, B = matrix(5, seed=seed), matrix(7, seed=seed + 1)
    X, Y = signs(5, 3, seed=seed), signs(7, 3, seed=seed + 1)
    ends = {"low": 0.08, "high": 1.2}
    whole = run(row, torch.block_diag(A, B), torch.cat([X, Y]), **ends)
    parts = run(row, A, X, **ends).samples + run(row, B, Y, **ends).samples
    assert float((whole.samples - parts).abs().max()) <= 1e-11


@each_probed
def test_replicates_and_batches_equal_loops(row):
    A = torch.stack([matrix(6, 10.0, 1), 3 * matrix(6, 20.0, 2)])
    X = signs(4, 1, 6, 3, seed=5)
    whole = run(row, A, X)
    assert whole.value.shape == whole.status.shape == (4, 2)
    assert whole.samples.shape == (4, 2, 3)
    for r in range(4):
        for b in range(2):
            one = run(row, A[b], X[r, 0])
            # A batch that raises its bound for one item expands all of them again.
            assert one.num_matvecs <= whole.num_matvecs
            assert one.num_matvecs == whole.num_matvecs or row.claims.expectation == "adaptive"
            for name in ("samples", "value", "standard_error", "lower", "upper", "status"):
                left, right = getattr(whole, name)[r, b], getattr(one, name)
                torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10, msg=name)


@each_row
def test_float32_is_float64_to_its_precision(row):
    A, X = matrix(20, 20.0), signs(20, 4, seed=6)
    ends = {"low": 0.04, "high": 1.2}
    double, single = run(row, A, X, **ends), run(row, A.to(f32), X.to(f32), **ends)
    assert single.value.dtype == single.standard_error.dtype == f64
    # 50 (d + 1) u |log|∞ |x|² with d = 9, and the condition number for the methods that invert.
    bound = 50 * 10 * 2.0**-24 * math.log(25) * 20
    assert abs(float(single.value - double.value)) <= bound


# Devices ------------------------------------------------------------------------------------------


class OtherDevice(TorchDispatchMode):
    """Answers the questions a tensor without data cannot: every check passes, every float is 0."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 0.0
        return func(*args, **(kwargs or {}))


@each_row
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("ends", ["floats", "tensors"])
def test_nothing_is_left_on_another_device(row, dtype, ends):
    """Meta tensors refuse to meet CPU tensors, as those of any other device do."""
    A = torch.empty(3, 6, 6, dtype=dtype, device="meta")
    X = torch.empty(2, 1, 6, 4, dtype=dtype, device="meta")
    low, high = 0.5, 2.0
    if ends == "tensors":
        low = high = torch.empty(3, dtype=f64, device="meta")
    config = {name: SMALL.get(name, value) for name, value in row.config.items()}
    with OtherDevice():
        with pytest.raises(RuntimeError, match="device"):  # the premise of this test
            A + torch.ones(6, 6, dtype=dtype)
        arguments = (A, X) if row.uses_probes else (A,)
        est = row.estimate(*arguments, **config, **knowledge(row, low, high))
    for name in ("value", "standard_error", "lower", "upper", "status", "samples"):
        assert getattr(est, name).device.type == "meta"
    assert est.value.shape == ((2, 3) if row.uses_probes else (3,))
