"""Random degree: unbiased over degrees and signs by enumeration, with honest cost and brackets."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbp.degree_laws import degree_law, degree_variance, spectral_degree_variance
from specbp.estimate import Status
from specbp.operators import Dense
from specbp.roulette import randomised_chebyshev_logdet
from tests.support import (
    EPS,
    all_signs,
    f32,
    f64,
    flags,
    generator,
    geometric,
    log_forms,
    normal,
    signs,
    spd,
    variance_of_signs,
)

KINDS = ["log", "products", "geometric"]
ENDS = (0.045, 1.05)


def case(n=12, cond=20.0, m=5, dtype=f64, seed=0):
    return spd(geometric(n, cond), seed).to(dtype), signs(n, m, seed=seed + 9, dtype=dtype)


def masses(law):
    S = law.probabilities
    return S - torch.cat([S[1:], torch.zeros_like(S[:1])])


def every_degree(law, X):
    """Each probe of X with each degree, (n, K (J + 1)), and the degrees."""
    J = law.max_degree
    columns = X.repeat_interleave(J + 1, 1)
    return columns, torch.arange(J + 1).repeat(X.shape[1])


def naive(A, x, law, N):
    """One probe in a loop: T_j x one product a degree, weights from the law's survival."""
    a, b = (float(end) for end in law.interval)
    M = (2 * A - (a + b) * torch.eye(len(A), dtype=A.dtype)) / (b - a)
    rho = (math.sqrt(b) + math.sqrt(a)) / (math.sqrt(b) - math.sqrt(a))
    total = math.log((math.sqrt(a) + math.sqrt(b)) ** 2 / 4) * float(x @ x)
    before, w = x, M @ x
    for j in range(1, N + 1):
        c = 2 * (-1) ** (j + 1) / j * rho**-j
        total += c / float(law.survival(j)) * float(x @ w)
        before, w = w, 2 * M @ w - before
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [f32, f64])
def test_each_probe_is_its_weighted_sum(kind, dtype):
    A, X = case(m=12, dtype=dtype)
    law = degree_law(ENDS, 6, kind)
    N = torch.tensor([0, 1, 2, 3, 4, 5, 8, 9, 14, 0, 25, 2])
    est = randomised_chebyshev_logdet(A, X, law=law, degrees=N)
    dense, columns = A.double(), X.double().mT
    expected = [naive(dense, x, law, k) for x, k in zip(columns, N.tolist(), strict=True)]
    size = float((law.coefficients / law.probabilities)[: 25 + 1].abs().sum()) * 12
    error = (est.samples - torch.tensor(expected, dtype=f64)).abs().max()
    assert float(error) <= 100 * 26 * EPS[dtype] * size
    assert flags(est) == Status.OK
    assert est.num_matvecs == sum((k + 1) // 2 for k in N.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_variance_over_degrees_and_all_signs(kind):
    n = 6
    A, law = spd(geometric(n, 20.0)), degree_law(ENDS, 5, kind)
    X = all_signs(n)
    columns, N = every_degree(law, X)
    est = randomised_chebyshev_logdet(A, columns, law=law, degrees=N)
    table = est.samples.reshape(X.shape[1], -1)
    q = masses(law)
    exact = float(torch.logdet(A))
    means = table @ q
    torch.testing.assert_close(means, log_forms(A, X), rtol=0, atol=1e-11)
    assert float(means.mean()) == pytest.approx(exact, abs=1e-11)
    # The law of total variance, both parts in closed form.
    a, b = ENDS
    ev, V = torch.linalg.eigh(A)
    angle = ((2 * ev - a - b) / (b - a)).acos()
    T = torch.cos(angle.unsqueeze(-1) * torch.arange(law.max_degree + 1))
    moments = ((V.mT @ X) ** 2).mT @ T
    by_degree = float(degree_variance(law, moments).mean())
    by_probe = variance_of_signs((V * ev.log()) @ V.mT)
    variance = float((table - exact).square().mean(0) @ q)
    assert variance == pytest.approx(by_degree + by_probe, rel=1e-9)
    assert by_degree <= float(spectral_degree_variance(law, ev))


@pytest.mark.parametrize("kind", KINDS)
def test_mean_of_the_gradient_is_the_gradient(kind):
    n = 4
    A, law = spd(geometric(n, 20.0)).requires_grad_(), degree_law(ENDS, 5, kind)
    columns, N = every_degree(law, all_signs(n))
    est = randomised_chebyshev_logdet(A, columns, law=law, degrees=N)
    weights = masses(law).repeat(2 ** (n - 1)) / 2 ** (n - 1)
    (found,) = torch.autograd.grad((est.samples * weights).sum(), A)
    expected = torch.linalg.inv(A.detach())
    symmetric = (found + found.mT) / 2
    torch.testing.assert_close(symmetric, expected, rtol=0, atol=1e-9)


def test_gradient_of_one_estimate_is_its_derivative():
    A, X = case(n=5, m=3)
    law, N = degree_law(ENDS, 5), torch.tensor([0, 7, 2])

    def value(entries):
        return randomised_chebyshev_logdet((entries + entries.mT) / 2, X, law=law, degrees=N).value

    assert torch.autograd.gradcheck(value, A.clone().requires_grad_())


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 1000))
def test_bracket_holds_for_every_degree(first, second, seed):
    A, X = case(m=2, seed=seed)
    law = degree_law(ENDS, 20)
    N = torch.tensor([first, second])
    est = randomised_chebyshev_logdet(A, X, law=law, degrees=N)
    exact = float(log_forms(A, X).mean())
    assert float(est.lower) - 1e-10 <= exact <= float(est.upper) + 1e-10


@given(st.floats(0.01, 100), st.integers(0, 1000))
def test_scaling_adds_n_log_c(c, seed):
    A, X = case(seed=seed)
    law, scaled = degree_law(ENDS, 8), degree_law((ENDS[0] * c, ENDS[1] * c), 8)
    N = law.draw((5,), generator=generator(seed)).clamp(max=scaled.max_degree)
    plain = randomised_chebyshev_logdet(A, X, law=law, degrees=N)
    moved = randomised_chebyshev_logdet(c * A, X, law=scaled, degrees=N)
    expected = float(plain.value) + 12 * math.log(c)
    assert float(moved.value) == pytest.approx(expected, abs=1e-6)


def test_order_of_probes_is_kept():
    A, X = case(m=6)
    law, N = degree_law(ENDS, 8), torch.tensor([4, 0, 12, 3, 3, 9])
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    est = randomised_chebyshev_logdet(A, X, law=law, degrees=N)
    again = randomised_chebyshev_logdet(A, X[:, order], law=law, degrees=N[order])
    torch.testing.assert_close(again.samples, est.samples[order], rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("batched_interval", [False, True])
def test_batch_of_matrices_and_replicates_equals_singles(batched_interval):
    A = torch.stack([case(seed=1)[0], case(seed=2)[0]])
    X = signs(4, 1, 12, 5, seed=3)
    lower = torch.tensor([0.04, 0.045], dtype=f64) if batched_interval else 0.045
    law = degree_law((lower, 1.05), 7)
    N = law.draw((4, 2, 5), generator=generator())
    est = randomised_chebyshev_logdet(A, X, law=law, degrees=N)
    assert est.value.shape == (4, 2)
    for r in range(4):
        for i in range(2):
            own = degree_law((float(lower[i]), 1.05), 7) if batched_interval else law
            one = randomised_chebyshev_logdet(A[i], X[r, 0], law=own, degrees=N[r, i])
            for name in ("samples", "value", "standard_error", "lower", "upper"):
                found, expected = getattr(est, name)[r, i], getattr(one, name)
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


class Watched(Dense):
    """Remembers the columns of every product."""

    def __init__(self, matrix):
        super().__init__(matrix)
        self.columns = []

    def __matmul__(self, X):
        self.columns.append(X.shape[-1])
        return super().__matmul__(X)


def test_finished_probes_are_multiplied_no_more():
    A, X = case(m=5)
    operator = Watched(A)
    N = torch.tensor([1, 8, 0, 4, 3])
    est = randomised_chebyshev_logdet(operator, X, law=degree_law(ENDS, 5), degrees=N)
    assert operator.columns == [4, 3, 1, 1]
    assert est.num_matvecs == 9


def test_replicates_run_as_one_block_and_cost_their_mean():
    A, X = case()[0], signs(50, 12, 3, seed=4)
    law, operator = degree_law(ENDS, 6), Watched(A)
    N = law.draw((50, 3), generator=generator())
    est = randomised_chebyshev_logdet(operator, X, law=law, degrees=N)
    needed = int(((N + 1) // 2).sum())
    assert sum(operator.columns) == needed
    assert est.num_matvecs == pytest.approx(needed / 50)


def test_no_product_where_no_probe_asks_for_one():
    A, X = case()
    est = randomised_chebyshev_logdet(
        A, X, law=degree_law(ENDS, 0.5), degrees=torch.zeros(5, dtype=torch.int64)
    )
    assert est.num_matvecs == 0
    assert math.isfinite(float(est.value))
    assert float(est.lower) <= float(log_forms(A, X).mean()) <= float(est.upper)


def test_multiple_of_the_identity_leaves_the_noise_of_the_degree_only():
    """Repeated eigenvalues: each value is n p̂_N(c), the mean over N is n log c."""
    law = degree_law(ENDS, 6)
    N = torch.arange(law.max_degree + 1)
    X = signs(8, 1, seed=1).expand(8, len(N))
    est = randomised_chebyshev_logdet(0.3 * torch.eye(8, dtype=f64), X, law=law, degrees=N)
    assert float(est.samples @ masses(law)) == pytest.approx(8 * math.log(0.3), abs=1e-11)


@pytest.mark.parametrize("top", [-0.5, 0.0, 1.5])
def test_eigenvalue_outside_the_interval_is_told(top):
    ev = geometric(12, 20.0)
    ev[0] = top
    A, X = torch.diag(ev), normal(12, 3)
    N = torch.full((3,), 80)
    law = degree_law(ENDS, 60)
    est = randomised_chebyshev_logdet(A, X, law=law, degrees=N)
    assert Status.OUTSIDE_INTERVAL in flags(est)
    assert bool(est.value.isnan())


def test_asymmetry_is_told():
    A, X = case()
    A[0, 1] += 0.01
    est = randomised_chebyshev_logdet(
        A, X, law=degree_law(ENDS, 6), degrees=torch.tensor([5, 6, 3, 8, 9])
    )
    assert Status.NONSYMMETRIC in flags(est)
    assert bool(est.value.isnan())


def test_nan_in_a_product_gives_nan_and_a_status():
    A, X = case()
    A = torch.stack([A, A])
    A[0, 3, 3] = math.nan
    est = randomised_chebyshev_logdet(
        A, X, law=degree_law(ENDS, 6), degrees=torch.tensor([5, 0, 3, 8, 9])
    )
    assert bool(est.value[0].isnan())
    assert int(est.status[0]) & int(Status.NONFINITE)
    assert math.isfinite(float(est.value[1]))
    assert int(est.status[1]) == 0


@pytest.mark.parametrize(
    ("degrees", "error", "text"),
    [
        (torch.tensor([1, 2, -1, 0, 3]), ValueError, "draw them by law.draw"),
        (torch.tensor([1, 2, 10**6, 0, 3]), ValueError, "draw them by law.draw"),
        (torch.tensor([1, 2]), ValueError, "must fit the probes' shape"),
        (torch.ones(5), TypeError, "int64"),
        ([1, 2, 3, 4, 5], TypeError, "int64"),
    ],
)
def test_impossible_degrees_are_refused(degrees, error, text):
    A, X = case()
    with pytest.raises(error, match=text):
        randomised_chebyshev_logdet(A, X, law=degree_law(ENDS, 6), degrees=degrees)


def test_impossible_under_one_item_of_the_law():
    law = degree_law((torch.tensor([0.045, 0.9], dtype=f64), 1.05), 6)
    A, X = case()
    N = torch.full((2, 5), law.max_degree)
    with pytest.raises(ValueError, match="less for some items"):
        randomised_chebyshev_logdet(A, X.expand(2, 12, 5), law=law, degrees=N)


def test_mismatched_operators_are_refused():
    A, X = case()
    law, N = degree_law(ENDS, 6), torch.ones(5, dtype=torch.int64)
    with pytest.raises(TypeError, match="convert one"):
        randomised_chebyshev_logdet(A, X.float(), law=law, degrees=N)
    with pytest.raises(ValueError, match="square"):
        randomised_chebyshev_logdet(A[:5], X, law=law, degrees=N)
