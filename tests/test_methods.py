"""The table of methods: complete, true to its claims, and every row obeys the laws of log det."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import specbp
from specbp.methods import METHODS, Claims
from specbp.operators import CountingOperator
from specbp.testing import designs
from tests.rows import (
    MATRIX_FREE,
    PROBED,
    ROWS,
    SMALL,
    called,
    each_additive,
    each_joint,
    each_logdet,
    each_probed,
    each_row,
    knowledge,
    matrix,
    operand,
    run,
    slack,
)
from tests.support import (
    f32,
    f64,
    log_forms,
    normal,
    orthonormal,
    signs,
    spd,
)

# The table itself ---------------------------------------------------------------------------------


def test_keys_are_the_names_and_rows_are_distinct():
    assert list(METHODS) == [row.name for row in ROWS]
    calls = {(row.estimate, str(sorted(row.config.items()))) for row in ROWS}
    assert len(calls) == len(ROWS)


def test_every_public_estimator_has_a_row():
    public = {name for name in specbp.__all__ if name.endswith(("_logdet", "trace"))}
    public -= {"jacobian_logdet"}  # calls the estimator that it is given
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
    given = row.keywords(10, 8, {**row.config, **knowledge(row, 0.1, 1.0)})
    given |= {"degrees": None} if row.survival else {}
    for name in given:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    required = {
        name
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    }
    assert required <= set(given)
    assert ("probes" in parameters) == row.uses_probes
    assert not set(row.config) & set(row.needs)


# Claims -------------------------------------------------------------------------------------------


@each_row
@pytest.mark.parametrize(("n", "m"), [(12, 1), (12, 5), (20, 3)])
@pytest.mark.parametrize("size", [3, 8, 10])
def test_products_counted_are_the_products_claimed(row, n, m, size):
    m = max(m, row.claims.min_probes)
    A, X = matrix(n), signs(n, m, seed=1)
    sizes = {"num_steps": size, "degree": size, "power_steps": 6}
    config = {name: sizes.get(name, value) for name, value in row.config.items()}
    counter = CountingOperator(operand(row, A))
    est = run(row, A, X, **config)
    if row.on != "dense A":
        called(row, counter, X, {**config, **knowledge(row, 0.08, 1.2)})
        spent = counter.num_gram_matvecs if row.on == "J" else counter.num_matvecs
        assert spent == est.num_matvecs
    claimed = row.claims.matvecs(n, m, config)
    assert math.isnan(claimed) or est.num_matvecs == claimed


@pytest.mark.parametrize("name", ["algorithm1", "algorithm1_plain"])
def test_products_claimed_when_the_matrix_is_smaller_than_power_steps(name):
    row, config = METHODS[name], METHODS[name].config | {"degree": 9, "power_steps": 10}
    est = run(row, matrix(4), signs(4, 3), **config)
    assert est.num_matvecs == row.claims.matvecs(4, 3, config)


@each_row
def test_bracket_claimed_holds_and_no_other_is_reported(row):
    A, m = matrix(30, 50.0), 4 if row.claims.joint else 1
    X = signs(40, 30, m, seed=2)
    truth, est, slack = bracketed(row, A, X), run(row, A, X), 1e-10
    if row.claims.expectation == "exact":
        assert float(est.lower) == float(est.upper) == float(est.value)
        assert float(est.value) == pytest.approx(float(truth), abs=slack)
    elif row.claims.bracket_of != "inner":
        assert bool(torch.isfinite(est.lower).all()) == ("lower" in row.claims.bracket)
        assert bool(torch.isfinite(est.upper).all()) == ("upper" in row.claims.bracket)
        if row.claims.bracket:
            assert bool((est.lower <= truth + slack).all())
            assert bool((truth <= est.upper + slack).all())


def bracketed(row, A, X):
    """What the claimed bracket holds, for each block of probes."""
    if not row.uses_probes or row.claims.bracket_of == "truth":
        return torch.logdet(A)
    if row.claims.bracket_of == "complete":
        return run(row, A, X, num_steps=A.shape[-1]).value
    columns = X.movedim(-2, 0).flatten(1)
    return log_forms(A, columns).reshape(len(X), -1).mean(-1)


@pytest.mark.parametrize(
    "row", [r for r in PROBED if r.claims.calibrated], ids=lambda row: row.name
)
def test_standard_error_claimed_calibrated_is(row):
    """E[se²] = Var over all pairs of sign vectors, or as many as an error bar takes."""
    A, m, config = matrix(5), row.claims.bar_probes, {}
    if row.claims.expectation == "krylov":  # complete spaces leave no truncation, which varies too
        A, config = spd(torch.tensor([1.0, 1, 1, 0.1, 0.1], dtype=f64)), {"num_steps": 5}
    est = run(row, A, designs.sign_tuples(5, m).probes, **config)
    ratio = float(est.standard_error.square().mean() / est.value.var(correction=0))
    # Exact for independent values. Those of Algorithm 1 share the bound found from the first
    # probe: to 1e-4 no matter if it holds, to 4 % if the polynomial explodes beyond it.
    shares = row.claims.expectation == "adaptive"
    slack = 1e-9 if not shares else 1e-3 if row.claims.gated else 0.05
    assert ratio == pytest.approx(1, abs=slack)


@each_additive
def test_additive_rows_are_means_of_their_probes(row):
    A, X = matrix(), signs(8, 6, seed=3)
    whole = run(row, A, X)
    singles = torch.cat([run(row, A, X[:, i : i + 1]).samples for i in range(6)])
    same = bool(torch.allclose(whole.samples, singles, rtol=0, atol=1e-10))
    assert same == row.claims.additive
    assert float(whole.value) == pytest.approx(float(whole.samples.mean()), abs=1e-12)


@each_joint
def test_fewer_probes_than_claimed_are_refused(row):
    m = row.claims.min_probes
    assert bool(run(row, matrix(), signs(8, m, seed=4)).ok)
    if m > 1:
        with pytest.raises(ValueError, match="probe"):
            run(row, matrix(), signs(8, m - 1, seed=4))


@each_joint
def test_an_error_bar_takes_as_many_probes_as_claimed(row):
    bars = {
        m: bool(torch.isfinite(run(row, matrix(), signs(8, m, seed=4)).standard_error))
        for m in range(row.claims.min_probes, row.claims.bar_probes + 1)
    }
    if row.claims.calibrated:
        assert [m for m, finite in bars.items() if finite] == [row.claims.bar_probes]


# Laws ---------------------------------------------------------------------------------------------


@each_probed
@given(seed=st.integers(0, 10**6), c=st.floats(1e-3, 1e3))
def test_even_and_homogeneous_in_the_probes(row, seed, c):
    A, X = matrix(), normal(8, 4, seed=seed)
    est = run(row, A, X)
    negated = run(row, A, -X)
    if row.claims.joint:  # a factorisation may round otherwise
        assert float((negated.value - est.value).abs()) <= 1e-10 * slack(row) * size_of(est, X)
        return
    torch.testing.assert_close(negated.samples, est.samples, rtol=1e-14, atol=1e-14)
    scaled = run(row, A, c * X)
    error = (scaled.samples / c**2 - est.samples).abs().max()
    assert float(error) <= 1e-10 * size_of(est, X)


def size_of(est, X) -> float:
    return float(est.samples.abs().max()) + float(X.square().sum(0).max())


@each_logdet
@given(c=st.floats(1e-6, 1e6), seed=st.integers(0, 100))
def test_scaling_the_matrix_adds_its_log_times_the_squared_norm(row, c, seed):
    A, X = matrix(seed=seed), signs(8, 4, seed=seed)
    est, scaled = run(row, A, X), run(row, c * A, X)
    expected = est.value + 8 * math.log(c)
    # The plain Algorithm 1 explodes, and its rounding with it.
    scale = float(est.samples.abs().max()) if row.uses_probes else 1
    bound = 1e-10 * slack(row) * (1 + scale + 8 * abs(math.log(c)))
    assert abs(float(scaled.value - expected)) <= bound


@pytest.mark.parametrize("row", [r for r in PROBED if r.survival is None], ids=lambda row: row.name)
@given(seed=st.integers(0, 10**6))
def test_rotating_matrix_and_probes_together_changes_nothing(row, seed):
    A, X, Q = matrix(), normal(8, 4 if row.claims.joint else 3, seed=seed), orthonormal(8, 8, seed)
    B = Q @ A @ Q.mT
    B = (B + B.mT) / 2
    ends = {"low": 0.08, "high": 1.2}
    left, right = run(row, A, X, **ends), run(row, B, Q @ X, **ends)
    bound = 1e-10 * slack(row) * (1 + float(X.square().sum(0).max()))
    assert float((left.value - right.value).abs()) <= bound
    if not row.claims.joint:
        assert float((left.samples - right.samples).abs().max()) <= bound


@each_additive
@given(order=st.permutations(range(1, 6)))
def test_permuting_the_probes_permutes_their_values(row, order):
    # The first probe stays: Algorithm 1 starts its bound from it.
    A, X, order = matrix(), signs(8, 6, seed=4), [0, *order]
    left, right = run(row, A, X).samples[order], run(row, A, X[:, order]).samples
    torch.testing.assert_close(left, right, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "row",
    [r for r in MATRIX_FREE if r.claims.expectation[:2] == "tr" and r.claims.additive],
    ids=lambda row: row.name,
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
    X = signs(4, 1, 6, 4, seed=5)
    whole = run(row, A, X)
    assert whole.value.shape == whole.status.shape == (4, 2)
    assert whole.samples.shape == (4, 2, 4) or row.claims.joint
    for r in range(4):
        for b in range(2):
            one = run(row, A[b], X[r, 0])
            # A batch that raises its bound for one item expands all of them again.
            random = math.isnan(row.claims.matvecs(6, 4, SMALL))
            assert one.num_matvecs <= whole.num_matvecs or random
            adaptive = row.claims.expectation == "adaptive"
            assert one.num_matvecs == whole.num_matvecs or adaptive or random
            for name in ("samples", "value", "standard_error", "lower", "upper", "status"):
                left, right = getattr(whole, name)[r, b], getattr(one, name)
                close = 1e-10 * slack(row)
                torch.testing.assert_close(
                    left, right, rtol=close, atol=close, equal_nan=True, msg=name
                )


@each_row
def test_float32_is_float64_to_its_precision(row):
    A, X = matrix(20, 20.0), signs(20, 4, seed=6)
    ends = {"low": 0.04, "high": 1.2}
    double, single = run(row, A, X, **ends), run(row, A.to(f32), X.to(f32), **ends)
    assert single.value.dtype == single.standard_error.dtype == f64
    # 50 (d + 1) u |log|∞ |x|² with d = 9, and the condition number for the methods that invert.
    bound = 50 * 10 * 2.0**-24 * math.log(25) * 20 * slack(row)
    assert abs(float(single.value - double.value)) <= bound
