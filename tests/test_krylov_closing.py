"""Where a Krylov space ends: what counts as rounding, and what stands behind the end."""

from __future__ import annotations

import pytest
import torch

from specbp.krylov import golub_kahan, lanczos
from tests.support import EPS, f32, f64, geometric, normal, signs, spd

each_run = pytest.mark.parametrize("run", [lanczos, golub_kahan])


def coupled(n, coupling, dtype):
    """The identity, but for the coupling of the first two unit vectors."""
    A = torch.eye(n, dtype=dtype)
    A[0, 1] = A[1, 0] = coupling
    return A


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize(("n", "batch"), [(400, (1,)), (4, (400,)), (4, (2, 400))])
@pytest.mark.parametrize("share", [0.8, 1.25])
def test_a_coupling_within_rounding_of_the_matrix_closes_the_space(dtype, n, batch, share):
    """Rounding is √n eps |A|: neither n eps |A|, nor more of it the more probes there are."""
    rows = torch.eye(n, dtype=dtype)[0].expand(*batch, n).contiguous()
    coupling = share * n**0.5 * EPS[dtype]
    T = lanczos(coupled(n, coupling, dtype), rows, 2)
    assert bool((T.closed == (share < 1)).all())
    assert bool((T.off_diagonal[..., 0] == (0 if share < 1 else coupling)).all())


@each_run
def test_basis_is_zero_behind_the_end_and_only_there(run):
    A = torch.diag(geometric(6, 10.0))
    rows = torch.cat([torch.eye(6, dtype=f64)[:1], signs(1, 6)])  # an eigenvector, and none
    T = run(A, rows, 3)
    assert T.closed.tolist() == [True, False]
    torch.testing.assert_close(T.basis[0], rows / torch.linalg.vector_norm(rows, dim=-1)[:, None])
    assert bool((T.basis[1:, 0] == 0).all())
    lengths = torch.linalg.vector_norm(T.basis[:, 1], dim=-1)
    torch.testing.assert_close(lengths, torch.ones(3, dtype=f64))


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("nulls", [1, 2, 3])
def test_a_null_vector_in_the_space_ends_it(dtype, nulls):
    """J annihilates a direction of the space: that α is rounding, and counts as zero."""
    sigma = torch.cat([torch.tensor([1.0, 0.8, 0.5], dtype=f64), torch.zeros(nulls, dtype=f64)])
    n = 3 + nulls
    B = golub_kahan(torch.diag(sigma).to(dtype), signs(5, n, dtype=dtype), n)
    assert bool((B.diagonal[:, :3] > 0.01).all())
    assert bool((B.diagonal[:, 3] == 0).all())
    assert bool((B.off_diagonal[:, 3:] == 0).all())
    assert bool((B.diagonal[:, 4:] > 0).all())  # filler
    assert B.closed.tolist() == [nulls > 1] * 5  # early, if there were more steps to come


def test_asymmetry_is_relative_to_the_matrix_of_its_own_probe():
    A = spd(geometric(12, 10.0)) + 1e-3 * normal(12, 12, seed=5)
    T = lanczos(torch.stack([A, 1e6 * A]), signs(12, 12).expand(2, 12, 12).contiguous(), 4)
    assert float(T.asymmetry.min()) > 1e-5
    torch.testing.assert_close(T.asymmetry[1], T.asymmetry[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("share", [0.8, 1.0, 1.25])
def test_an_image_within_rounding_of_the_matrix_is_null(dtype, share):
    """From e₁ the bidiagonal matrix is J itself: α₂ counts as zero up to √n eps |J|."""
    J, alpha = torch.eye(4, dtype=dtype), share * 2 * EPS[dtype]
    J[0, 1], J[1, 1] = 0.5, alpha
    B = golub_kahan(J, torch.eye(4, dtype=dtype)[:1], 2)
    assert B.diagonal.tolist() == [[1.0, 0.0 if share <= 1 else alpha]]


@each_run
def test_basis_is_zero_behind_an_end_that_only_rounding_hides(run):
    """Three distinct eigenvalues: what would follow the third vector is rounding, normalised."""
    A = torch.diag(torch.tensor([1.0, 0.4, 0.1], dtype=f64).repeat(4))
    T = run(A, signs(5, 12), 6)
    assert bool(T.closed.all())
    assert bool((T.basis[3:] == 0).all())
    lengths = torch.linalg.vector_norm(T.basis[:3], dim=-1)
    torch.testing.assert_close(lengths, torch.ones(3, 5, dtype=f64))
