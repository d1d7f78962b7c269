"""Hutch++, XTrace and XNysTrace at low rank, in float32, on bad products and wrong arguments."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from specbp.estimate import Status
from specbp.lowrank_trace import hutchpp_trace, xnystrace, xtrace
from specbp.probes import sphere
from tests.support import EPS, f32, f64, flags, generator, geometric, normal, signs, spd

CALLS = {
    "hutchpp": hutchpp_trace,
    "xtrace": partial(xtrace, resphere=False),
    "xnystrace": partial(xnystrace, resphere=False),
    "xtrace resphered": xtrace,
    "xnystrace resphered": xnystrace,
}
every = pytest.mark.parametrize("estimate", CALLS.values(), ids=CALLS)


def decaying(n: int, dtype=f64) -> torch.Tensor:
    return spd(1 / torch.arange(1, n + 1, dtype=f64)).to(dtype)


@pytest.mark.parametrize("dtype", [f32, f64])
@every
def test_exact_for_low_rank(estimate, dtype):
    A = spd(torch.tensor([3.0, 2.0, 1.0] + [0.0] * 37, dtype=f64)).to(dtype)
    est = estimate(A, normal(5, 40, 8, seed=2, dtype=dtype))
    assert float((est.value - 6).abs().max()) <= 40 * 20 * EPS[dtype]
    assert int(est.status.abs().max()) == 0


@pytest.mark.parametrize("dtype", [f32, f64])
@every
def test_zero_matrix_and_zero_probes(estimate, dtype):
    assert float(estimate(torch.zeros(6, 6, dtype=dtype), signs(6, 4, dtype=dtype)).value) == 0
    est = estimate(torch.eye(6, dtype=dtype), torch.zeros(6, 4, dtype=dtype))
    assert bool(est.value.isfinite())


@pytest.mark.parametrize("m", [6, 7])
@every
def test_exact_with_more_probes_than_rows(estimate, m):
    A = spd(geometric(3, 10.0))
    assert float(estimate(A, normal(3, m)).value) == pytest.approx(float(A.trace()), rel=1e-12)


@pytest.mark.parametrize("law", [lambda k: k**-4, lambda k: torch.exp(-k)], ids=["power", "exp"])
@pytest.mark.parametrize("estimate", [xtrace, xnystrace])
def test_decay_below_rounding_leaves_no_bias(estimate, law):
    """A tolerance that cuts off what float32 still resolves shows here as a bias of the mean."""
    A = spd(law(torch.arange(1.0, 101.0, dtype=f64)))
    X = sphere(100, 20, generator=generator(3), batch_shape=(100,), dtype=f32)
    rounded, exact = estimate(A.to(f32), X), estimate(A, X.double())
    gap = rounded.value - A.to(f32).double().trace() - (exact.value - A.trace())
    assert bool(rounded.ok.all())
    assert abs(float(gap.mean())) <= max(2 * EPS[f32], 4 * float(gap.std()) / 10)
    assert float(gap.abs().max()) <= 100 * 20 * EPS[f32]


@every
def test_float32_is_float64_to_rounding(estimate):
    A, X = decaying(50, f32), signs(50, 10, dtype=f32)
    exact = estimate(A.double(), X.double())
    est = estimate(A, X)
    assert est.value.dtype == f64
    assert float(est.value) == pytest.approx(float(exact.value), abs=50 * 10 * EPS[f32])


# What must fail -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every
def test_one_bad_item_fails_alone(estimate, bad):
    A = torch.stack([decaying(6), decaying(6)])
    A[1, 2, 2] = bad
    est = estimate(A, signs(6, 4))
    assert bool(est.value[0].isfinite())
    assert bool(est.value[1].isnan())
    assert Status(int(est.status[1])) == Status.NONFINITE
    assert int(est.status[0]) == 0


@every
def test_nan_probe(estimate):
    X = signs(6, 4)
    X[0, 1] = math.nan
    est = estimate(decaying(6), X)
    assert flags(est) == Status.NONFINITE
    assert bool(est.samples.isnan().all())  # every other probe would lean on it


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("resphere", [False, True])
def test_indefinite_matrix_is_no_number_for_xnystrace(dtype, resphere):
    A = spd(torch.linspace(-0.5, 1.0, 20, dtype=f64)).to(dtype)
    est = xnystrace(A, signs(20, 12, dtype=dtype), resphere=resphere)
    assert flags(est) == Status.NEGATIVE_RITZ
    assert bool(est.value.isnan())
    assert bool(xtrace(A, signs(20, 12, dtype=dtype)).value.isfinite())


@pytest.mark.parametrize("dtype", [f32, f64])
def test_crooked_matrix_is_no_number_for_xnystrace(dtype):
    A = decaying(20)
    A[0, 1] += 0.3
    est = xnystrace(A.to(dtype), signs(20, 5, dtype=dtype))
    assert flags(est) == Status.NONSYMMETRIC
    assert bool(est.value.isnan())


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("n", [10, 300])
def test_semidefinite_to_rounding_is_no_failure_for_xnystrace(dtype, n):
    J = normal(n, n // 3, dtype=dtype)
    est = xnystrace(J @ J.mT, signs(20, n, n // 2, dtype=dtype))
    assert int(est.status.abs().max()) == 0


@pytest.mark.parametrize(
    ("probes", "error", "match"),
    [
        pytest.param(signs(6, 3).to(f32), TypeError, "operator is torch.float64", id="dtype"),
        pytest.param(signs(5, 3), ValueError, r"n = 6, got \(5, 3\)", id="length"),
        pytest.param(signs(6, 3)[:, :0], ValueError, "At least one probe", id="none"),
        pytest.param(signs(6, 3).to("meta"), ValueError, "the probes on meta", id="device"),
    ],
)
@every
def test_wrong_probes(estimate, probes, error, match):
    with pytest.raises(error, match=match):
        estimate(decaying(6), probes)


@every
def test_wrong_matrix(estimate):
    with pytest.raises(ValueError, match=r"square operator .* got \(6, 4\)"):
        estimate(normal(6, 4), signs(4, 2))
