"""What must not work: wrong arguments are refused by name, failures end in NaN or −inf."""

from __future__ import annotations

import math

import pytest
import torch

from specbp.estimate import FAILURES, EstimationError, Status
from specbp.logdets import (
    algorithm1_logdet,
    chebyshev_logdet,
    golub_kahan_logdet,
    slq_logdet,
    taylor_logdet,
)
from specbp.trace import hutchinson_trace
from tests.support import (
    EPS,
    blind_start,
    f32,
    f64,
    factor,
    flags,
    geometric,
    log_forms,
    log_forms_of_factor,
    normal,
    signs,
    spd,
)

A8, J8, X8 = spd(geometric(8, 10.0)), factor(geometric(8, 3.0), 11), signs(8, 3)

# Every estimator with probes, with arguments that suit A8; `slot` is its first argument.
CALLS = {
    "slq": lambda A, X, **kw: slq_logdet(A, X, **{"num_steps": 4} | kw),
    "golub_kahan": lambda J, X, **kw: golub_kahan_logdet(J, X, **{"num_steps": 4} | kw),
    "chebyshev": lambda A, X, **kw: chebyshev_logdet(
        A, X, **{"degree": 9, "interval": (0.08, 1.2)} | kw
    ),
    "taylor": lambda A, X, **kw: taylor_logdet(A, X, **{"degree": 9, "upper": 1.2} | kw),
    "algorithm1": lambda A, X, **kw: algorithm1_logdet(A, X, **{"degree": 9, "lower": 0.08} | kw),
    "plain": lambda A, X, **kw: algorithm1_logdet(
        A, X, **{"degree": 9, "lower": 0.08, "safe": False} | kw
    ),
    "hutchinson": hutchinson_trace,
}
each = pytest.mark.parametrize("name", list(CALLS))
on_A = pytest.mark.parametrize("name", [name for name in CALLS if name != "golub_kahan"])
krylov = pytest.mark.parametrize("name", ["slq", "golub_kahan"])
polynomials = pytest.mark.parametrize("name", ["chebyshev", "taylor", "algorithm1", "plain"])


@each
def test_the_calls_work_with_good_arguments(name):
    """Else every error below could come from something else."""
    assert bool(CALLS[name](J8 if name == "golub_kahan" else A8, X8).ok)


# Wrong arguments ----------------------------------------------------------------------------------


@each
@pytest.mark.parametrize(
    ("probes", "error", "match"),
    [
        pytest.param(X8.to(f32), TypeError, "operator is torch.float64, the probes", id="dtype"),
        pytest.param(X8.long(), TypeError, "the probes are torch.int64", id="integers"),
        pytest.param(X8.to("meta"), ValueError, "operator is on cpu, the probes on", id="device"),
        pytest.param(X8[:5], ValueError, r"n = 8, got \(5, 3\)", id="length"),
        pytest.param(X8[:, 0], ValueError, r"n = 8, got \(8,\)", id="vector"),
        pytest.param(X8[:, :0], ValueError, "At least one probe", id="none"),
        pytest.param(X8.tolist(), TypeError, "torch.Tensor .*got list", id="list"),
        pytest.param(None, TypeError, "got NoneType", id="missing"),
    ],
)
def test_wrong_probes(name, probes, error, match):
    with pytest.raises(error, match=match):
        CALLS[name](A8, probes)


@each
@pytest.mark.parametrize(
    ("operator", "error", "match"),
    [
        pytest.param(A8.tolist(), TypeError, "An operator needs `shape`", id="list"),
        pytest.param(A8.long(), TypeError, "float32 or float64, got torch.int64", id="integers"),
        pytest.param(A8.half(), TypeError, "float32 or float64, got torch.float16", id="half"),
        pytest.param(A8[0], ValueError, r"got \(8,\)", id="vector"),
        pytest.param(A8[:0, :0], ValueError, r"got \(0, 0\)", id="empty"),
    ],
)
def test_wrong_operator(name, operator, error, match):
    with pytest.raises(error, match=match):
        CALLS[name](operator, X8)


@on_A
def test_rectangular_operator_where_a_square_one_is_needed(name):
    with pytest.raises(ValueError, match=r"square operator .* got \(11, 8\)"):
        CALLS[name](J8, X8)


def test_wide_jacobian():
    with pytest.raises(ValueError, match=r"\(8, 11\): fewer rows than columns"):
        golub_kahan_logdet(J8.mT, signs(11, 3), num_steps=4)


def test_operator_without_adjoint():
    class OneWay:
        shape, dtype, device = J8.shape, J8.dtype, J8.device

        def __matmul__(self, X):
            return J8 @ X

    with pytest.raises(TypeError, match=r"no adjoint `\.mT`"):
        golub_kahan_logdet(OneWay(), X8, num_steps=4)


@krylov
@pytest.mark.parametrize("k", [-1, 0, 9])
def test_steps_outside_the_order(name, k):
    with pytest.raises(ValueError, match=f"num_steps must be between 1 and n = 8, got {k}"):
        CALLS[name](J8 if name == "golub_kahan" else A8, X8, num_steps=k)


@polynomials
@pytest.mark.parametrize("degree", [-3, 0])
def test_degree_below_one(name, degree):
    with pytest.raises(ValueError, match=f"degree .* at least 1, got {degree}"):
        CALLS[name](A8, X8, degree=degree)


@pytest.mark.parametrize(
    "ends", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (0.0, 1.0), (math.nan, 1.0), (0.1, math.nan)]
)
def test_wrong_interval(ends):
    with pytest.raises(ValueError, match="spectral interval needs 0 < lower < upper < inf"):
        chebyshev_logdet(A8, X8, degree=4, interval=ends)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("taylor", "upper"),
        ("algorithm1", "lower"),
        ("plain", "lower"),
        ("slq", "lower"),
        ("golub_kahan", "lower"),
    ],
)
def test_wrong_bound(name, argument, bound):
    with pytest.raises(ValueError, match=f"{argument} must be a positive, finite bound"):
        CALLS[name](J8 if name == "golub_kahan" else A8, X8, **{argument: bound})


def test_wrong_names_and_counts_of_algorithm1():
    with pytest.raises(ValueError, match='"chebyshev" or "taylor", got \'legendre\''):
        CALLS["algorithm1"](A8, X8, polynomial="legendre")
    for name in ("algorithm1", "plain"):
        with pytest.raises(ValueError, match="power_steps must be at least 1, got 0"):
            CALLS[name](A8, X8, power_steps=0)


@pytest.mark.parametrize("name", ["slq", "golub_kahan", "taylor", "algorithm1", "plain"])
def test_a_batch_of_bounds_needs_a_batch_of_matrices(name):
    argument = "upper" if name == "taylor" else "lower"
    three = torch.tensor([0.05, 0.06, 0.07])
    with pytest.raises(ValueError, match=rf"{argument} has shape \(3,\), which does not fit"):
        CALLS[name](J8 if name == "golub_kahan" else A8, X8, **{argument: three})


# Failures of the estimate -------------------------------------------------------------------------


@each
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_probe_among_many_is_never_averaged_away(name, bad):
    """One probe of item 1 meets a bad entry: that estimate is NaN, the others do not notice."""
    X = signs(2, 8, 50)
    X[1, 3, 17] = bad
    est = CALLS[name](J8 if name == "golub_kahan" else A8, X)
    assert est.value.isnan().tolist() == [False, True]
    assert est.ok.tolist() == [True, False]
    assert Status(int(est.status[1])) & (Status.NONFINITE | Status.OUTSIDE_INTERVAL)
    clean = CALLS[name](J8 if name == "golub_kahan" else A8, signs(2, 8, 50))
    assert float(est.value[0]) == pytest.approx(float(clean.value[0]), abs=1e-12)
    with pytest.raises(EstimationError, match="1 of 2 estimates failed"):
        est.raise_for_status()


@each
def test_operator_that_returns_nan(name):
    A = (J8 if name == "golub_kahan" else A8).clone()
    A[2, 3] = math.nan
    est = CALLS[name](A, X8)
    assert math.isnan(float(est.value))
    assert Status.NONFINITE in flags(est)


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("smallest", [-1.0, -0.1, -0.01])
def test_indefinite_matrix_is_nan_for_every_log_determinant(dtype, smallest):
    values = geometric(20, 10.0)
    values[-1] = smallest
    A, X = spd(values).to(dtype), signs(20, 4, dtype=dtype)
    est = slq_logdet(A, X, num_steps=20)
    assert flags(est) == Status.NEGATIVE_RITZ
    assert math.isnan(float(est.value))
    for est in (
        chebyshev_logdet(A, X, degree=100, interval=(0.05, 1.0)),
        algorithm1_logdet(A, X, degree=100, lower=0.05),
    ):
        assert flags(est) & FAILURES
        assert math.isnan(float(est.value))


@pytest.mark.parametrize(("b", "degree"), [(0.5, 40), (0.9, 12), (0.98, 20)])
def test_interval_too_small_on_the_right_is_found_out(b, degree):
    est = chebyshev_logdet(A8, X8, degree=degree, interval=(0.08, b))
    assert flags(est) == Status.OUTSIDE_INTERVAL
    assert math.isnan(float(est.value))
    est = taylor_logdet(A8, X8, degree=40, upper=0.4)  # found out beyond 2α
    assert flags(est) == Status.OUTSIDE_INTERVAL


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("skew", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("size", [3, 10])
def test_nonsymmetric_operator_is_nan(dtype, skew, size):
    S = normal(20, 20, seed=1)
    A = spd(geometric(20, 10.0)) + skew * (S - S.mT) / torch.linalg.matrix_norm(S - S.mT, 2)
    X = signs(20, 4, seed=2, dtype=dtype)
    est = slq_logdet(A.to(dtype), X, num_steps=size)
    assert Status.NONSYMMETRIC in flags(est)
    assert math.isnan(float(est.value))
    for est in (
        chebyshev_logdet(A.to(dtype), X, degree=2 * size, interval=(0.05, 1.5)),
        taylor_logdet(A.to(dtype), X, degree=2 * size, upper=1.5),
        algorithm1_logdet(A.to(dtype), X, degree=2 * size, lower=0.05),
    ):
        # Complex eigenvalues leave the interval: what grows hides how crooked it is.
        assert flags(est) & FAILURES
        assert math.isnan(float(est.value))


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("steps", ["all", "rank + 1"])
@pytest.mark.parametrize(
    ("N", "n", "rank"), [(1, 1, 0), (2, 2, 1), (5, 4, 3), (8, 8, 1), (40, 16, 15), (80, 32, 8)]
)
def test_rank_deficient_is_minus_infinity(dtype, steps, N, n, rank):
    """Every one of 25 random matrices: the share found is 1, not most."""
    J = normal(25, N, rank, seed=n, dtype=dtype) @ normal(25, rank, n, seed=N, dtype=dtype)
    X = signs(25, n, 4, seed=3, dtype=dtype)
    k = n if steps == "all" else min(rank + 1, n)
    est = golub_kahan_logdet(J, X, num_steps=k)
    gram = J.mT @ J
    for found in (est, slq_logdet((gram + gram.mT) / 2, X, num_steps=k)):
        assert bool((found.value == -math.inf).all())
        assert bool((found.status & int(Status.SINGULAR) != 0).all())
        assert not bool(found.ok.any())


@pytest.mark.parametrize(("dtype", "cond"), [(f32, 1e5), (f64, 1e6), (f64, 1e13)])
@pytest.mark.parametrize("n", [2, 16, 64])
def test_ill_conditioned_is_not_called_singular(dtype, cond, n):
    J = torch.stack([factor(geometric(n, cond), n + 8, seed) for seed in range(8)]).to(dtype)
    X = signs(8, n, 4, seed=3, dtype=dtype)
    assert bool(golub_kahan_logdet(J, X, num_steps=n).ok.all())
    A = torch.stack([spd(geometric(n, cond), seed) for seed in range(8)]).to(dtype)
    assert bool(slq_logdet(A, X, num_steps=n).ok.all())


def test_raising_names_the_flags_and_the_remedy():
    values = geometric(8, 10.0)
    values[-1] = -0.5
    est = slq_logdet(spd(values), X8, num_steps=8)
    with pytest.raises(EstimationError, match="NEGATIVE_RITZ.*golub_kahan_logdet on a factor"):
        est.raise_for_status()


# Once wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [60, 400])
def test_safe_form_raises_the_bound_although_float32_overflows(degree):
    A, X = blind_start(dtype=f32, cond=10.0)
    assert bool(algorithm1_logdet(A, X, degree=degree, lower=0.09).ok)


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("delta", [0.005, 0.02, 0.1, 0.5, 5.0])
@pytest.mark.parametrize("degree", [15, 40, 200])
def test_what_the_safe_form_floors_is_no_explosion(dtype, delta, degree):
    """Up to δ = 5 with λ in [0.001, 1]: not above what counts all eigenvalues below δ as δ."""
    A, X = spd(geometric(30, 1e3)), signs(30, 8, seed=50)
    values, V = torch.linalg.eigh(A)
    weights = ((V.mT @ X) ** 2).mean(-1)
    est = algorithm1_logdet(A.to(dtype), X.to(dtype), degree=degree, lower=delta, power_steps=30)
    low, high = float(weights @ values.log()), float(weights @ values.clamp(min=delta).log())
    assert not bool(est.ok) or low - 0.1 <= float(est.value) <= high + 0.1
    assert flags(est) & (Status.FLOORED | FAILURES)


@pytest.mark.parametrize("dtype", [f32, f64])
def test_a_slightly_negative_eigenvalue_gives_no_number_from_the_safe_form(dtype):
    values = geometric(20, 10.0)
    values[-1] = -1e-4
    A, X = spd(values).to(dtype), signs(20, 4, dtype=dtype)
    est = algorithm1_logdet(A, X, degree=100, lower=0.05)
    assert math.isnan(float(est.value))
    assert est.num_matvecs == 10 + 4 * 50  # no upper end is tried in vain


@pytest.mark.parametrize("name", ["slq", "golub_kahan"])
@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_range_of_float32_is_no_source_of_silent_errors(name, scale):
    square = (scale * A8).to(f32)
    est = CALLS[name](square, X8.to(f32), num_steps=8)
    exact = log_forms_of_factor if name == "golub_kahan" else log_forms
    right = float(exact(square, X8).mean())
    assert not bool(est.ok) or abs(float(est.value) - right) <= 1e-3
    assert float(est.value) != -math.inf


@pytest.mark.parametrize("dtype", [f32, f64])
def test_narrow_interval_that_holds_the_spectrum_is_accepted(dtype):
    A = spd(geometric(32, 1.01)).to(dtype)
    values, V = torch.linalg.eigh(A.double())
    X = (32**0.5 * V[:, [0, -1]]).to(dtype)
    ends = (float(values[0]) * (1 - EPS[dtype]), float(values[-1]) * (1 + EPS[dtype]))
    assert bool(chebyshev_logdet(A, X, degree=50, interval=ends).ok)


def test_delta_above_the_spectrum_is_not_called_nonsymmetric():
    est = algorithm1_logdet(A8, X8, degree=30, lower=5.0)
    assert math.isnan(float(est.value))
    assert Status.NONSYMMETRIC not in flags(est)


@krylov
def test_a_zero_probe_does_not_make_the_matrix_singular(name):
    est = CALLS[name](J8 if name == "golub_kahan" else A8, torch.cat([X8, 0 * X8], 1))
    assert Status.SINGULAR not in flags(est)
