"""Joined projections: orthonormal, exact overlaps, and a Gauss–Radau extension below A."""

from __future__ import annotations

import pytest
import torch

from specbp.block import block_golub_kahan, block_lanczos
from specbp.deflation import krylov_aware_golub_kahan_logdet, krylov_aware_logdet
from specbp.subspace import (
    Recorder,
    complement,
    join_golub_kahan,
    join_lanczos,
    leaving,
    radau,
    shared_space,
    spectrum,
)
from tests.support import EPS, f32, f64, factor, geometric, normal, orthonormal, signs, spd


@pytest.mark.parametrize("node", [0.5, 0.99, 1e-3])
def test_a_radau_extension_lies_below_the_matrix(node):
    """A − (M̂ ⊕ a I) is positive semidefinite, for any orthonormal W, and singular with a itself."""
    A, W = spd(torch.linspace(1, 9, 12, dtype=f64)), orthonormal(12, 5)
    residual = A @ W - W @ (W.mT @ A @ W)
    Q, R = torch.linalg.qr(residual)
    M = radau(W.mT @ A @ W, R.mT, torch.tensor(node, dtype=f64), squared=False)
    basis = torch.cat([W, Q], 1)
    below = basis @ M @ basis.mT + node * (torch.eye(12, dtype=f64) - basis @ basis.mT)
    assert float(torch.linalg.eigvalsh(A - below).min()) >= -1e-12
    assert float(torch.linalg.eigvalsh(M).min()) == pytest.approx(node, rel=1e-9)


@pytest.mark.parametrize("node", [0.5, 0.99, 1e-3])
def test_the_extension_of_a_factor_is_that_of_its_square(node):
    J = torch.linalg.cholesky(spd(torch.linspace(1, 9, 12, dtype=f64))).mT
    W = orthonormal(12, 5)
    U, B = torch.linalg.qr(J @ W)
    left = J.mT @ U - W @ B.mT
    R = torch.linalg.qr(left)[1]
    M = radau(B, R.mT, torch.tensor(node, dtype=f64), squared=True)
    expected = radau(B.mT @ B, B.mT @ R.mT, torch.tensor(node, dtype=f64), squared=False)
    torch.testing.assert_close(M.mT @ M, expected, rtol=1e-9, atol=1e-9)


def test_a_node_above_a_ritz_value_gives_no_extension():
    M, F = torch.diag(torch.tensor([1.0, 2.0], dtype=f64)), torch.ones(2, 1, dtype=f64)
    assert bool(radau(M, F, torch.tensor(1.5, dtype=f64), squared=False).isnan().any())
    F[0] = 0  # The eigenvalue below does not meet the coupling.
    assert bool(radau(M, F, torch.tensor(1.5, dtype=f64), squared=False).isfinite().all())


@pytest.mark.parametrize("dtype", [f32, f64])
def test_joined_matrices_are_projections(dtype):
    """A bulk that the block leaves, of width far below |A|: V must not drift into W."""
    values = torch.cat(
        [torch.linspace(0.8, 1, 4, dtype=f64), torch.linspace(1e-2, 1.1e-2, 56, dtype=f64)]
    )
    A, J = spd(values).to(dtype), factor(values.sqrt(), 80).to(dtype)
    X = signs(60, 5, dtype=dtype).mT
    found = block_lanczos(A, X[:2], 8)
    space = shared_space(found, 4, None)
    M = join_lanczos(A, space, complement(X[2:], space.right), 12).matrix
    assert float(spectrum(M, False)[0].min()) >= 1e-2 - 200 * EPS[dtype]
    assert float(spectrum(M, False)[0].max()) <= 1 + 200 * EPS[dtype]
    recorder = Recorder(J)
    found = block_golub_kahan(recorder, X[:2], 8)
    space = shared_space(found, 4, recorder.images)
    M = join_golub_kahan(J, space, complement(X[2:], space.right), 12).matrix
    assert float(spectrum(M, True)[0].min()) >= 1e-2 - 200 * EPS[dtype]
    assert float(spectrum(M, True)[0].max()) <= 1 + 200 * EPS[dtype]


def test_a_repeated_probe_of_the_block_changes_nothing():
    """A direction lost amid directions that are kept."""
    A, X = spd(geometric(30, 50.0)), signs(30, 6)
    repeated = torch.cat([X[:, :1], X[:, :1], X[:, 1:]], 1)
    config = {"block_steps": 2, "extra_steps": 1, "num_steps": 4, "lower": 0.01}
    J = factor(geometric(30, 50.0).sqrt(), 40) + 0.01 * normal(40, 30)
    for estimate, operator in ((krylov_aware_logdet, A), (krylov_aware_golub_kahan_logdet, J)):
        once = estimate(operator, X, num_block=2, **config)
        twice = estimate(operator, repeated, num_block=3, **config)
        torch.testing.assert_close(twice.samples, once.samples, rtol=1e-9, atol=1e-9)


def test_complement_of_what_the_basis_holds_is_zero():
    W = orthonormal(20, 4).mT.contiguous()
    rows = torch.cat([W[:2] * 3 + W[2:], normal(1, 20)])
    y = complement(rows, W)
    assert bool((y[:2] == 0).all())
    assert float((y[2] @ W.mT).abs().max()) <= 1e-15


@pytest.mark.parametrize("k", [2, 5])
def test_what_leaves_the_joined_space_is_not_underrated(k):
    """F Fᵀ − (SᵀA²S − (SᵀAS)²) is positive semidefinite, S without the last vector of V."""
    A, X = spd(geometric(30, 50.0)), signs(30, 3).mT
    found = block_lanczos(A, X[:2], 3)
    space = shared_space(found, 6, None)
    y = complement(X[2:], space.right)
    joined = join_lanczos(A, space, y, k)
    gram = found.coupling @ found.coupling.mT
    F = leaving(gram, joined, k)[0]
    S = [*space.right, y[0] / y[0].norm()]
    while len(S) < 6 + k - 1:
        S.append(complement((A @ S[-1])[None], torch.stack(S))[0])
        S[-1] = S[-1] / S[-1].norm()
    S = torch.stack(S).mT
    M = S.mT @ A @ S
    torch.testing.assert_close(joined.matrix[0, :-1, :-1], M, rtol=1e-9, atol=1e-9)
    slack = torch.linalg.eigvalsh(F @ F.mT - (S.mT @ A @ A @ S - M @ M))
    assert float(slack.min()) >= -1e-12
    assert float(slack.max()) > 1e-6
