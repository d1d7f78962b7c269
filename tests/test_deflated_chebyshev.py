"""Deflated Chebyshev against dense compressions: laws, wrong intervals, Fischer's bracket."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from specbp import deflated_chebyshev
from specbp.block import block_lanczos
from specbp.deflated_chebyshev import deflate, deflated_chebyshev_logdet, shrunk
from specbp.estimate import Status
from specbp.logdets import chebyshev_logdet
from specbp.testing.designs import sign_tuples
from tests.support import EPS, f32, f64, flags, geometric, normal, signs, spd, truncated_series

OUTLIERS = torch.cat(
    [torch.tensor([9e3, 4e3, 1e3], dtype=f64), torch.linspace(1, 3, 27, dtype=f64)]
)
SHAPE = {"num_block": 3, "block_steps": 4, "degree": 12}


def parts(A, X, block, steps, lower, upper):
    """The deflated pairs and the interval used, from the private steps, and a dense projector."""
    pairs = deflate(block_lanczos(A, X[:, :block].mT, steps), torch.tensor(lower, dtype=f64))
    U = pairs.vectors[pairs.deflated].mT
    used = shrunk(pairs, torch.tensor(lower, dtype=f64), torch.tensor(upper, dtype=f64))
    return pairs, U, used


def naive(A, X, U, p, block):
    """One value per probe: dense p of the compression, the constant from the other probes."""
    n, d = U.shape
    basis = torch.linalg.svd(U)[0][:, d:]
    nodes, S = torch.linalg.eigh(basis.mT @ A @ basis)
    held = float((U.mT @ A @ U).logdet())
    y = basis.mT @ X[:, block:]
    forms = torch.from_numpy(p(nodes.numpy())) @ (S.mT @ y) ** 2
    squares = y.square().sum(0)
    c = (forms.sum() - forms) / (squares.sum() - squares)
    return held + forms - c * (squares - (n - d))


@pytest.mark.parametrize("degree", [1, 2, 7, 20])
def test_each_sample_is_that_of_a_dense_compression(degree):
    A, X = spd(OUTLIERS), signs(30, 7)
    pairs, U, used = parts(A, X, 3, 4, 0.9, 1e4)
    assert U.shape[1] >= 3
    assert float(used.upper) < 5
    est = deflated_chebyshev_logdet(A, X, **(SHAPE | {"degree": degree}), interval=(0.9, 1e4))
    expected = naive(A, X, U, truncated_series(degree, float(used.lower), float(used.upper)), 3)
    torch.testing.assert_close(est.samples, expected, rtol=1e-9, atol=1e-8)
    assert est.num_matvecs == 3 * 4 + 4 * math.ceil(degree / 2)
    assert flags(est) == Status.OK


def test_residuals_and_cost_bound_what_the_pairs_miss():
    """Σ log θ + log det Ã exceeds log det A by no more than `cost`; residuals are true."""
    for seed in range(5):
        A, X = spd(geometric(40, 1e3), seed), signs(40, 4, seed=seed)
        for tolerance in (1e-3, 10.0):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(deflated_chebyshev, "CONVERGED", tolerance)
                pairs, U, _ = parts(A, X, 3, 5, 0.9e-3, 2.0)
            theta = pairs.nodes[pairs.deflated]
            true = torch.linalg.vector_norm(A @ U - U * theta, dim=0)
            torch.testing.assert_close(pairs.residuals[pairs.deflated], true, rtol=1e-6, atol=1e-13)
            basis = torch.linalg.svd(U)[0][:, U.shape[1] :]
            both = theta.log().sum() + (basis.mT @ A @ basis).logdet()
            excess = float(both - A.logdet())
            assert -1e-9 <= excess <= float(pairs.cost) + 1e-9
        assert U.shape[1] > 0
        assert excess > 1e-3


@pytest.mark.parametrize("m", [1, 2])
def test_mean_over_all_tuples_of_signs_is_that_of_the_polynomial(m):
    A, tuples = spd(torch.tensor([80.0, 1.0, 1.5, 2.0, 3.0], dtype=f64)), sign_tuples(5, m).probes
    X = torch.cat([normal(5, 1).expand(len(tuples), 5, 1), tuples], -1)
    config = {"num_block": 1, "block_steps": 4, "degree": 3}
    est = deflated_chebyshev_logdet(A, X, **config, interval=(0.9, 100.0))
    pairs, U, used = parts(A, X[0], 1, 4, 0.9, 100.0)
    basis = torch.linalg.svd(U)[0][:, U.shape[1] :]
    p = truncated_series(3, float(used.lower), float(used.upper))
    values = p(torch.linalg.eigvalsh(basis.mT @ A @ basis).numpy())
    assert 0 < U.shape[1] < 5
    expected = float(pairs.value) + float(np.sum(values))
    assert float(est.value.mean()) == pytest.approx(expected, abs=1e-9)


def test_nothing_converged_is_plain_chebyshev_with_a_certified_bracket():
    A, X = spd(geometric(40, 1e2)), signs(40, 9)
    est = deflated_chebyshev_logdet(
        A, X, num_block=1, block_steps=1, degree=12, interval=(0.9e-2, 1.1)
    )
    plain = chebyshev_logdet(A, X[:, 1:], degree=12, interval=(0.9e-2, 1.1), series=True)
    # d = 0: |y|² = n for signs, so that c drops out.
    torch.testing.assert_close(est.samples, plain.samples, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(est.lower, plain.lower, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(est.upper, plain.upper, rtol=1e-9, atol=1e-9)


def test_a_shrunk_interval_has_no_bracket():
    est = deflated_chebyshev_logdet(spd(OUTLIERS), signs(30, 7), **SHAPE, interval=(0.9, 1e4))
    assert (float(est.lower), float(est.upper)) == (-math.inf, math.inf)


def test_a_shrunk_interval_proved_wrong_gives_way_to_the_one_given(monkeypatch):
    A, X = spd(OUTLIERS), signs(30, 7)
    monkeypatch.setattr(deflated_chebyshev, "MARGIN", 0.5)
    est = deflated_chebyshev_logdet(A, X, **(SHAPE | {"degree": 40}), interval=(0.9, 1e4))
    _, U, _ = parts(A, X, 3, 4, 0.9, 1e4)
    expected = naive(A, X, U, truncated_series(40, 0.9, 1e4), 3)
    torch.testing.assert_close(est.samples, expected, rtol=1e-9, atol=1e-7)
    assert est.num_matvecs == 3 * 4 + 2 * 4 * 20
    assert flags(est) == Status.OK
    assert float(est.lower) < float(A.logdet()) + 20
    assert math.isfinite(float(est.upper))


@pytest.mark.parametrize("interval", [(0.9, 2.0), (2.5, 1e4)])
def test_an_interval_given_that_is_wrong_fails(interval):
    est = deflated_chebyshev_logdet(
        spd(OUTLIERS), signs(30, 7), num_block=3, block_steps=4, degree=60, interval=interval
    )
    assert flags(est) & Status.OUTSIDE_INTERVAL
    assert math.isnan(float(est.value))


@pytest.mark.parametrize("dtype", [f32, f64])
def test_rounding_in_the_deflated_directions_does_not_grow(dtype):
    """A narrow bulk far below the outliers: zero lies 20 half-widths outside its interval."""
    values = torch.cat([OUTLIERS[:3], torch.linspace(1, 1.01, 27, dtype=f64)])
    A, X = spd(values / 100).to(dtype), signs(30, 7, dtype=dtype)
    est = deflated_chebyshev_logdet(A, X, **(SHAPE | {"degree": 40}), interval=(0.9e-2, 1e2))
    assert not flags(est) & Status.OUTSIDE_INTERVAL
    assert est.num_matvecs == 3 * 4 + 4 * 20
    exact = float(values.log().sum() - 30 * math.log(100))
    assert float(est.value) == pytest.approx(exact, abs=0.1)


def test_deflation_beats_the_plain_expansion():
    A, exact = spd(OUTLIERS), float(OUTLIERS.log().sum())
    X = signs(20, 10, 30).mT
    est = deflated_chebyshev_logdet(A, X, **SHAPE, interval=(0.9, 1e4))
    plain = chebyshev_logdet(A, X[..., :9], degree=12, interval=(0.9, 1e4))
    assert est.num_matvecs == plain.num_matvecs
    error, other = ((e.value - exact).square().mean().sqrt() for e in (est, plain))
    assert float(error) < float(other) / 10


def test_exact_when_everything_is_deflated():
    A, X = spd(geometric(12, 50.0)), signs(12, 6)
    est = deflated_chebyshev_logdet(
        A, X, num_block=3, block_steps=9, degree=2, interval=(0.01, 1.1)
    )
    assert float(est.value) == pytest.approx(float(A.logdet()), rel=1e-9)
    assert float(est.standard_error) <= 1e-9


@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_scaling_adds_n_log_c_to_every_sample(scale):
    A, X = spd(OUTLIERS), signs(30, 7)
    plain = deflated_chebyshev_logdet(A, X, **SHAPE, interval=(0.9, 1e4))
    interval = (0.9 * scale, 1e4 * scale)
    scaled = deflated_chebyshev_logdet(scale * A, X, **SHAPE, interval=interval)
    expected = plain.samples + 30 * math.log(scale)
    torch.testing.assert_close(scaled.samples, expected, rtol=1e-8, atol=1e-8)


def test_batches_equal_single_calls():
    A = torch.stack(
        [spd(OUTLIERS), spd(OUTLIERS.flip(0).sqrt(), 1), spd(geometric(30, 9.0), 2) * 9]
    )
    X = signs(2, 3, 30, 6)
    interval = (torch.tensor([0.9, 0.9, 0.9], dtype=f64), 1e4)
    whole = deflated_chebyshev_logdet(A, X, **SHAPE, interval=interval)
    for i in range(2):
        for j in range(3):
            one = deflated_chebyshev_logdet(A[j], X[i, j], **SHAPE, interval=(0.9, 1e4))
            torch.testing.assert_close(whole.samples[i, j], one.samples, rtol=1e-8, atol=1e-8)
            assert int(whole.status[i, j]) == int(one.status)


def test_float32_is_float64_to_rounding():
    A, X = spd(OUTLIERS / 100).to(f32), signs(30, 7, dtype=f32)
    config = SHAPE | {"interval": (0.9e-2, 1e2)}
    est = deflated_chebyshev_logdet(A, X, **config)
    exact = deflated_chebyshev_logdet(A.double(), X.double(), **config)
    assert est.value.dtype == f64
    assert flags(est) == Status.OK
    assert float((est.value - exact.value).abs()) <= 1e4 * 30 * EPS[f32]


class Spoiled:
    """A, whose product number `after` is not a number."""

    dtype, device = f64, torch.device("cpu")

    def __init__(self, A, after):
        self.A, self.left, self.shape = A, after, A.shape

    def __matmul__(self, X):
        self.left -= 1
        return self.A @ X * (math.nan if self.left == 0 else 1)


@pytest.mark.parametrize("after", [1, 2, 4, 5, 8])
def test_a_product_that_is_nan_gives_nan(after):
    A = Spoiled(spd(OUTLIERS), after)
    est = deflated_chebyshev_logdet(A, signs(30, 7), **SHAPE, interval=(0.9, 1e4))
    assert math.isnan(float(est.value))
    assert flags(est) & Status.NONFINITE


def test_skew_is_told():
    skew = spd(OUTLIERS) + 3 * (normal(30, 30) - normal(30, 30).mT)
    skew[0, 1] += 3
    est = deflated_chebyshev_logdet(skew, signs(30, 7), **SHAPE, interval=(0.9, 1e4))
    assert flags(est) & Status.NONSYMMETRIC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_block": 0}, "num_block"),
        ({"num_block": 7}, "num_block"),
        ({"block_steps": 0}, "block_steps"),
        ({"degree": 0}, "degree"),
        ({"interval": (0.0, 1.0)}, "interval"),
    ],
)
def test_bad_numbers_are_refused(change, message):
    config = SHAPE | {"interval": (0.9, 1e4)} | change
    with pytest.raises(ValueError, match=message):
        deflated_chebyshev_logdet(spd(OUTLIERS), signs(30, 7), **config)
