"""Block Lanczos and Golub–Kahan: the basis, the projection, ranks, products, by dense oracles."""

from __future__ import annotations

import pytest
import torch

from specbp.block import block_golub_kahan, block_lanczos, num_blocks
from specbp.operators import CountingOperator
from tests.support import EPS, f32, f64, factor, geometric, normal, orthonormal, signs, spd

DTYPES = [f32, f64]
N = 120
SPECTRA = {
    # α / β > 1 in every step: one Gram–Schmidt pass loses a factor of that each time.
    "far from zero": torch.linspace(0.5, 1.5, N, dtype=f64),
    "narrow": torch.linspace(0.99, 1.01, N, dtype=f64),
    "geometric": geometric(N, 1e2),
    "ill-conditioned": geometric(N, 1e8),
    "clustered": torch.cat([1 + 1e-3 * normal(N // 2), 1e-2 * (1 + 1e-3 * normal(N // 2, seed=1))]),
    "repeated": torch.tensor([1.0, 0.3, 0.1], dtype=f64).repeat(N // 3),
    "identity": torch.ones(N, dtype=f64),
}


def rows_of(n, s, seed=3, dtype=f64):
    return signs(s, n, seed=seed, dtype=dtype)


def live(K):
    """1 for directions kept, as a diagonal matrix."""
    return torch.diag_embed(K.kept.double())


def nodes(K):
    """Sorted nodes of the directions kept, those of lost ones above them."""
    T = K.matrix.mT @ K.matrix if K.squared else K.matrix
    inside = live(K) @ T @ live(K)
    norm = torch.linalg.matrix_norm(inside, keepdim=True)
    return torch.linalg.eigvalsh(inside + 2 * norm * (torch.eye(T.shape[-1], dtype=f64) - live(K)))


def projector(K):
    W = K.basis.double()
    return W.mT @ W


def krylov_projector(A, rows, k):
    """Onto span{X, AX, …} by orthonormalising power by power: no recurrence, no blocks."""
    Q = torch.zeros(A.shape[-1], 0, dtype=f64)
    new = torch.linalg.qr(rows.double().mT)[0]
    for _ in range(k):
        U, sigma, _ = torch.linalg.svd(torch.cat([Q, new], 1), full_matrices=False)
        Q = U[:, sigma > 1e-8]
        new = A.double() @ Q
    return Q @ Q.mT


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("s", [1, 3, 5])
@pytest.mark.parametrize("name", list(SPECTRA))
def test_basis_is_orthonormal_and_matrix_the_projection(dtype, name, s):
    A = spd(SPECTRA[name]).to(dtype)
    K = block_lanczos(A, rows_of(N, s, dtype=dtype), 40)
    W, rounding = K.basis.double(), 100 * EPS[dtype]
    norm = float(torch.linalg.matrix_norm(A.double(), 2))
    assert float((W @ W.mT - live(K)).abs().max()) <= rounding
    projection = W @ A.double() @ W.mT
    assert float((projection - live(K) @ K.matrix @ live(K)).abs().max()) <= rounding * norm
    assert float(K.asymmetry) <= rounding
    ranks = {"repeated": 3 * s, "identity": s}
    if name != "clustered":  # whose width float32 barely resolves
        assert int(K.rank) == ranks.get(name, min(40 * s, N))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("s", [1, 4])
@pytest.mark.parametrize("cond", [1e1, 1e4])
def test_golub_kahan_basis_and_projection(dtype, s, cond):
    n, m = 60, 90
    J = factor(geometric(n, cond), m).to(dtype)
    K = block_golub_kahan(J, rows_of(n, s, dtype=dtype), 15)
    W, rounding = K.basis.double(), 100 * EPS[dtype]
    assert float((W @ W.mT - live(K)).abs().max()) <= rounding
    image = J.double() @ W.mT
    assert float((image.mT @ image - K.matrix.mT @ K.matrix).abs().max()) <= rounding
    # Singular values to eps σ_max: what the squares of float32 would not resolve.
    resolved = torch.linalg.svdvals(image)
    assert float((torch.linalg.svdvals(K.matrix) - resolved).abs().max()) <= rounding
    assert float(K.asymmetry) <= rounding


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("s", [1, 3])
def test_span_is_the_krylov_space(k, s):
    J = factor(geometric(14, 4.0), 20)
    A, rows = J.mT @ J, rows_of(14, s)
    truth = krylov_projector(A, rows, k)
    for K in (block_lanczos(A, rows, k), block_golub_kahan(J, rows, k)):
        assert int(K.rank) == s * k
        torch.testing.assert_close(projector(K), truth, rtol=0, atol=1e-9)


@pytest.mark.parametrize("run", [block_lanczos, block_golub_kahan])
def test_start_holds_the_coordinates_of_the_probes(run):
    rows = rows_of(20, 4)
    rows[3] = rows[0] + 2 * rows[1]
    K = run(spd(geometric(20, 9.0)), rows, 3)
    torch.testing.assert_close(K.start @ K.basis[:4], rows, rtol=0, atol=1e-12)


def test_matrix_vanishes_beyond_neighbouring_blocks():
    T = block_lanczos(spd(geometric(40, 50.0)), rows_of(40, 3), 6).matrix
    B = block_golub_kahan(factor(geometric(40, 7.0), 50), rows_of(40, 3), 6).matrix
    for i in range(6):
        for j in range(6):
            block = slice(3 * i, 3 * i + 3), slice(3 * j, 3 * j + 3)
            if abs(i - j) > 1:
                assert float(T[block].abs().max()) <= 1e-13
            if j - i > 1 or j < i:
                assert float(B[block].abs().max()) <= 1e-13


@pytest.mark.parametrize("run", [block_lanczos, block_golub_kahan])
def test_leading_part_is_that_of_fewer_steps(run):
    A, rows = spd(geometric(40, 20.0)), rows_of(40, 3)
    long, short = run(A, rows, 6), run(A, rows, 4)
    torch.testing.assert_close(long.matrix[:12, :12], short.matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(long.basis[:12], short.basis, rtol=0, atol=1e-12)


@pytest.mark.parametrize("squared", [False, True])
def test_coupling_meets_the_block_that_would_follow(squared):
    J = factor(geometric(30, 6.0), 40)
    A, rows = J.mT @ J, rows_of(30, 3)
    if squared:
        K, longer = (block_golub_kahan(J, rows, k, follow=True) for k in (4, 5))
    else:
        K, longer = (block_lanczos(A, rows, k) for k in (4, 5))
    following = longer.basis[12:]
    torch.testing.assert_close(K.basis[9:] @ A @ following.mT, K.coupling, rtol=0, atol=1e-12)


def test_golub_kahan_without_follow_has_no_coupling():
    assert block_golub_kahan(factor(geometric(9, 2.0), 9), rows_of(9, 2), 3).coupling is None


# Products -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "s", "steps", "k"), [(20, 3, 4, 4), (20, 3, 20, 7), (4, 6, 3, 1)])
def test_products_spent(n, s, steps, k):
    assert num_blocks(n, s, steps) == k
    A = CountingOperator(spd(geometric(n, 10.0)))
    block_lanczos(A, rows_of(n, s), steps)
    assert A.num_matvecs == k * s
    for follow, adjoint in ((False, k - 1), (True, k)):
        J = CountingOperator(factor(geometric(n, 10.0), n + 2))
        block_golub_kahan(J, rows_of(n, s), steps, follow=follow)
        assert (J.num_matvecs, J.mT.num_matvecs) == (k * s, adjoint * s)
        assert J.num_gram_matvecs == (k if follow else k - 0.5) * s


# Ranks --------------------------------------------------------------------------------------------


def test_equal_zero_and_dependent_probes_are_lost():
    rows = rows_of(50, 4)
    rows[1], rows[3] = rows[0], 0
    for K in (
        block_lanczos(spd(geometric(50, 9.0)), rows, 3),
        block_golub_kahan(factor(geometric(50, 3.0), 60), rows, 3),
    ):
        assert K.kept.view(3, 4).sum(-1).tolist() == [2, 2, 2]
        W = K.basis.double()
        torch.testing.assert_close(W @ W.mT, live(K), rtol=0, atol=1e-13)
        lost = ~K.kept
        torch.testing.assert_close(K.matrix[lost], torch.eye(12, dtype=f64)[lost], rtol=0, atol=0)
        assert float(K.basis[lost].abs().max()) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_nearly_equal_probes_are_two_directions_until_they_differ_by_rounding(dtype):
    A = spd(geometric(50, 9.0)).to(dtype)
    x, y = rows_of(50, 1, dtype=dtype), rows_of(50, 1, seed=4, dtype=dtype)
    for size, rank in ((1e3, 2), (1e-2, 1)):
        K = block_lanczos(A, torch.cat([x, x + size * EPS[dtype] * y]), 1)
        assert int(K.rank) == rank
        W = K.basis.double()
        assert float((W @ W.mT - live(K)).abs().max()) <= 100 * EPS[dtype]


@pytest.mark.parametrize("run", [block_lanczos, block_golub_kahan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_invariant_subspace_closes_the_space(run, dtype):
    Q = orthonormal(30, 30)
    A = ((Q * torch.linspace(0.1, 1, 30, dtype=f64)) @ Q.mT).to(dtype)
    Q = Q[:, [2, 15, 28, 29]]
    rows = (torch.eye(4, dtype=f64)[:2] + torch.eye(4, dtype=f64)[2:]) @ Q.mT
    K = run(A, rows.to(dtype), 6)
    assert int(K.rank) == 4
    inside = Q @ Q.mT
    torch.testing.assert_close(projector(K), inside, rtol=0, atol=1e3 * EPS[dtype])


@pytest.mark.parametrize("run", [block_lanczos, block_golub_kahan])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "s"), [(1, 1), (1, 3), (2, 5), (3, 2), (5, 9), (8, 8), (9, 4)])
def test_space_filled_has_n_directions(run, dtype, n, s):
    A = spd(torch.linspace(1, 3, n, dtype=f64)).to(dtype)
    K = run(A, normal(s, n, dtype=dtype), n)
    assert int(K.rank) == n
    eigenvalues = torch.linspace(1, 3, n, dtype=f64) ** (2 if K.squared else 1)
    torch.testing.assert_close(nodes(K)[:n], eigenvalues, rtol=0, atol=200 * EPS[dtype])


@pytest.mark.parametrize("run", [block_lanczos, block_golub_kahan])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e20])
@pytest.mark.parametrize("length", [1e-18, 1.0, 1e18])
def test_neither_the_unit_of_the_operator_nor_that_of_the_probes_matters(run, dtype, scale, length):
    """Squares of both leave the range of float32."""
    A = spd(torch.tensor([1.0, 0.4], dtype=f64).repeat(15))
    rows = rows_of(30, 3, dtype=dtype)
    one, other = run(A.to(dtype), rows, 6), run((scale * A).to(dtype), length * rows, 6)
    assert int(one.rank) == int(other.rank) == 6
    torch.testing.assert_close(
        torch.linalg.svdvals(live(other) @ other.matrix @ live(other)) / scale,
        torch.linalg.svdvals(live(one) @ one.matrix @ live(one)),
        rtol=0,
        atol=100 * EPS[dtype],
    )


def test_extreme_range_of_float64():
    """Squares of the overlaps leave the range of float64 itself."""
    A, rows = spd(torch.tensor([1.0, 0.4], dtype=f64).repeat(15)), rows_of(30, 3)
    for scale in (1e-200, 1e200):
        assert int(block_lanczos(scale * A, rows, 6).rank) == 6


@pytest.mark.parametrize("run", [block_lanczos, block_golub_kahan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_rounding_adds_to_a_closed_space_is_orthonormal_too(run, dtype):
    """Close eigenvalues amplify rounding beyond any threshold: the projection must stand it."""
    A = spd(torch.tensor([1.0, 0.9, 0.8, 0.7], dtype=f64).repeat(10)).to(dtype)
    K = run(A, rows_of(40, 3, dtype=dtype), 14)
    assert int(K.rank) >= 12
    W = K.basis.double()
    assert float((W @ W.mT - live(K)).abs().max()) <= 100 * EPS[dtype]
    image = A.double() @ W.mT
    projection = image.mT @ image if K.squared else W @ image
    T = K.matrix.mT @ K.matrix if K.squared else K.matrix
    assert float((projection - live(K) @ T @ live(K)).abs().max()) <= 100 * EPS[dtype]


# Batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [block_lanczos, block_golub_kahan])
def test_batch_of_unequal_ranks_equals_single_calls(run):
    values = (geometric(24, 9.0), torch.tensor([1.0, 0.3], dtype=f64).repeat(12))
    matrices = torch.stack([spd(v) for v in values]).unsqueeze(1)  # (2, 1) against (3,)
    rows = rows_of(24, 9).view(3, 3, 24).clone()
    rows[1, 2] = rows[1, 0]
    rows[2, 1:] = 0
    whole = run(matrices, rows.expand(2, 3, 3, 24).contiguous(), 5)
    assert whole.rank.tolist() == [[15, 10, 5], [6, 4, 2]]
    for i in range(2):
        for j in range(3):
            one = run(matrices[i, 0], rows[j], 5)
            item = whole._replace(matrix=whole.matrix[i, j], kept=whole.kept[i, j])
            assert item.kept.tolist() == one.kept.tolist()
            torch.testing.assert_close(nodes(item), nodes(one), rtol=1e-11, atol=0)
            W, V = whole.basis[i, j], one.basis
            torch.testing.assert_close(W.mT @ W, V.mT @ V, rtol=0, atol=1e-11)


@pytest.mark.parametrize("run", [block_lanczos, block_golub_kahan])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["operator", "probes"])
def test_item_that_is_not_finite_spoils_itself_alone(run, value, where):
    A, rows = spd(geometric(12, 9.0)).repeat(3, 1, 1), rows_of(12, 6).view(2, 3, 12).repeat(2, 1, 1)
    rows = rows[:3]
    sound = run(A, rows, 3)
    if where == "operator":
        A[1, 4, 5] = value
    else:
        rows = rows.clone()
        rows[1, 0, 2] = value
    K = run(A, rows, 3)
    assert torch.isfinite(K.matrix[::2]).all()
    assert torch.isfinite(K.start[::2]).all()
    spoiled = torch.cat([K.matrix[1].flatten(), K.start[1].flatten()])
    assert not bool(torch.isfinite(spoiled).all())
    torch.testing.assert_close(
        nodes(K._replace(matrix=K.matrix[0], kept=K.kept[0])),
        nodes(sound._replace(matrix=sound.matrix[0], kept=sound.kept[0])),
    )
