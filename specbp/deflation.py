r"""Log-determinants with a captured subspace: what a block Krylov space holds leaves the variance.

With P = QQᵀ the projector on any subspace of dimension d, chosen before the probe x is looked at,
the trace splits exactly, and so does a multiple of the identity: for any c independent of x

.. math:: \log\det A = \operatorname{tr} Q^\top \log(A) Q
          + \mathbb{E} \bigl[ y^\top \log(A) y - c\,(|y|^2 - (n - d)) \bigr], \qquad y = (I - P) x.

The term in c is not a refinement. Without it the variance depends on the unit of A: the identity
has no off-diagonal entry, but its compression to the complement of Q has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from specbp import bounds
from specbp.block import BlockKrylov, block_golub_kahan, block_lanczos
from specbp.estimate import Estimate, Status, from_samples
from specbp.operators import (
    CountingOperator,
    LinearOperator,
    as_operator,
    check_probes,
    check_square,
    check_steps,
    check_tall,
    product,
)
from specbp.subspace import (
    Joined,
    Recorder,
    Shared,
    complement,
    join_golub_kahan,
    join_lanczos,
    leaving,
    log_sum,
    radau,
    shared_space,
    spectrum,
)


def krylov_aware_logdet(
    A: Any,
    probes: Tensor,
    *,
    num_block: int,
    block_steps: int,
    extra_steps: int,
    num_steps: int,
    lower: float | Tensor | None = None,
) -> Estimate:
    r"""log det A with a block Krylov space captured, the remainder by Lanczos in its complement.

    .. math:: \operatorname{tr} [\log M_i]_{QQ} + z_i^\top \log(M_i) z_i
              - c_i\,\bigl(|y_i|^2 - (n - d)\bigr), \qquad
              y_i = (I - QQ^\top) x_i = [W\; V_i] z_i

    The first b probes start q + r block Lanczos steps, of basis W; Q, of dimension d, spans the
    first q + 1 blocks. Each other probe adds the k steps V_i of its own Krylov space in the
    complement of W, and M_i is the projection of A on both: Gauss quadrature in the joined space,
    without one more product. c_i is the mean of log over the complement, as the other probes see it
    (the block, if there is but one).

    Every sample over-estimates: with W an isometry, Wᵀ log(A) W ≼ log(WᵀAW). With `lower` = a ≤
    λ_min and k ≥ 2 it is bracketed: A ≽ M̂ ⊕ a I for the Gauss–Radau extension M̂, and log is
    operator monotone. Given W the samples are independent but for c_i, uncorrelated to second
    order: the standard error is nearly calibrated.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, b + s), independent, of A's dtype and device.
        num_block: Block size b, 1 … m − 1.
        block_steps: q ≥ 0.
        extra_steps: r ≥ 1.
        num_steps: Lanczos steps k of each remainder, 1 … n.
        lower: A lower bound of λ_min, (...), if one is known.

    Costs b (q + r) + s k products, fewer if the blocks fill the space before; the value is exact
    then. The value carries no gradient.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes, devices or a number of probes or steps do not fit.

    Source: Chen & Hallman (2023), doi:10.1137/22M1494257, who take Q and M = T, the remainder by
        Lanczos on A, and c = 0.

    Example:
        >>> import torch
        >>> A = torch.diag(torch.tensor([1e3, 1.0, 1.0, 1.0], dtype=torch.float64))
        >>> x = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, 1]], dtype=torch.float64).mT
        >>> est = krylov_aware_logdet(
        ...     A, x, num_block=1, block_steps=1, extra_steps=1, num_steps=1)
        >>> print(f"{est.value:.9f} {torch.logdet(A):.9f}")
        6.907755279 6.907755279
    """
    A = CountingOperator(as_operator(A))
    check_steps(num_steps, check_square(A))
    start, rows = split_probes(A, probes, num_block)
    _check_block(block_steps, extra_steps)
    node = None if lower is None else bounds.positive(lower, "lower", rows)
    found = block_lanczos(A, start, block_steps + extra_steps)
    space = shared_space(found, num_block * (block_steps + 1), None)
    y, outside = _remainder(rows, space)
    joined = join_lanczos(A, space, outside, num_steps)
    eps = torch.finfo(A.dtype).eps
    skew = torch.maximum(joined.asymmetry, found.asymmetry.unsqueeze(-1)) > eps**0.5
    assert found.coupling is not None
    gram = found.coupling @ found.coupling.mT
    sums = _Sums(space, found, y, joined)
    status = sums.status(4 * eps, num_steps) | skew * int(Status.NONSYMMETRIC)
    return sums.estimate(gram, node, num_steps, status, A.num_matvecs)


def krylov_aware_golub_kahan_logdet(
    J: Any,
    probes: Tensor,
    *,
    num_block: int,
    block_steps: int,
    extra_steps: int,
    num_steps: int,
    lower: float | Tensor | None = None,
) -> Estimate:
    r"""log det JᵀJ with a block Krylov space captured, without squaring the condition number.

    .. math:: J\,[W\; V_i] = [U\; U_i]\, M_i, \qquad
              \log M_i^\top M_i = \sum_j 2 \log \sigma_j \; s_j s_j^\top

    `krylov_aware_logdet` on JᵀJ with the block bidiagonalisation of J in place of block Lanczos:
    singular values resolve those of J to eps σ_max, so that float32 serves up to cond(JᵀJ) ≈ 1e8.
    V_i is the Krylov space of (I − UUᵀ) J (I − WWᵀ). The value carries no gradient.

    Args:
        J: Operator or tensor (..., N, n), N ≥ n, with adjoint `.mT`, float32 or float64.
        probes: (..., n, b + s), independent, of J's dtype and device.
        num_block: Block size b, 1 … m − 1.
        block_steps: q ≥ 0.
        extra_steps: r ≥ 1.
        num_steps: Golub–Kahan steps k of each remainder, 1 … n.
        lower: A lower bound of λ_min(JᵀJ), (...), if one is known; costs b products with Jᵀ more.

    Costs b (q + r − ½) + s (k − ½) products with JᵀJ, fewer if the blocks fill the space before.

    Raises:
        TypeError: If J has no adjoint or dtypes differ.
        ValueError: If J is wide, or shapes, devices or a number of probes or steps do not fit.

    Source: Chen & Hallman (2023), doi:10.1137/22M1494257; Golub, Luk & Overton (1981),
        doi:10.1145/355945.355946.
    """
    J = as_operator(J)
    check_steps(num_steps, check_tall(J))
    J = CountingOperator(J)
    start, rows = split_probes(J, probes, num_block)
    _check_block(block_steps, extra_steps)
    node = None if lower is None else bounds.positive(lower, "lower", rows)
    recorder = Recorder(J)
    found = block_golub_kahan(recorder, start, block_steps + extra_steps)
    space = shared_space(found, num_block * (block_steps + 1), recorder.images)
    y, outside = _remainder(rows, space)
    joined = join_golub_kahan(J, space, outside, num_steps)
    eps = torch.finfo(J.dtype).eps
    gram = found.matrix.new_zeros(num_block, num_block)
    if node is not None:
        images = product(J.mT, space.left[..., -num_block:, :])
        images = complement(images, space.right).double()
        gram = images @ images.mT
    sums = _Sums(space, found, y, joined)
    skew = (found.asymmetry > eps**0.5).unsqueeze(-1) * int(Status.NONSYMMETRIC)
    status = sums.status((4 * eps) ** 2, num_steps) | skew
    return sums.estimate(gram, node, num_steps, status, J.num_gram_matvecs)


class _Sums(NamedTuple):
    """All that the samples are made of: the shared space, the remainders y and their spaces."""

    space: Shared
    found: BlockKrylov
    y: Tensor
    joined: Joined

    def estimate(
        self,
        gram: Tensor,
        node: Tensor | None,
        num_steps: int,
        status: Tensor,
        num_matvecs: float,
    ) -> Estimate:
        """The estimate, from the overlaps `gram` of what the last block leaves."""
        M, squared = self.joined.matrix, self.space.squared
        nodes, vectors = spectrum(M, squared)
        captured, own = self._weights(vectors)
        squares = torch.linalg.vector_norm(self.y.double(), dim=-1) ** 2
        forms = log_sum(nodes, own)
        rest = self.y.shape[-1] - self.space.inside.sum(-1, keepdim=True)
        shift = centres(forms, squares, self._mean_log()) * (squares - rest)
        upper = log_sum(nodes, captured) + forms - shift
        upper = torch.where(torch.isfinite(gram).all(-1).all(-1)[..., None], upper, torch.nan)
        below = None if node is None else torch.full_like(upper, -torch.inf)
        if node is not None and num_steps > 1:
            F = leaving(gram, self.joined, num_steps)
            D = F.shape[-2]
            extended = radau(M[..., :D, :D], F, node.unsqueeze(-1), squared)
            nodes, vectors = spectrum(extended, squared)
            below = log_sum(nodes, torch.stack(self._weights(vectors[..., :D, :])).sum(0)) - shift
            below = below.nan_to_num(nan=-torch.inf)
        if below is not None:
            filled = self.found.rank.unsqueeze(-1) + self.joined.rank == self.y.shape[-1]
            below = torch.where(filled, upper, below)
        return from_samples(upper, num_matvecs=num_matvecs, lower=below, upper=upper, status=status)

    def status(self, rounding: float, num_steps: int) -> Tensor:
        """Flags per probe; an eigenvalue within `rounding` of zero, relative, is zero."""
        nodes, _ = spectrum(self.joined.matrix, self.space.squared)
        floor = rounding * nodes.abs().amax(-1)
        whole = self.found.kept.shape[-1] + num_steps
        closed = self.found.rank.unsqueeze(-1) + self.joined.rank < whole
        return (
            closed * int(Status.INVARIANT_SUBSPACE)
            | (nodes.amin(-1) < -floor) * int(Status.NEGATIVE_RITZ)
            | (nodes.abs().amin(-1) <= floor) * int(Status.SINGULAR)
        )

    def _weights(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_{i ∈ Q} S_ij² and (zᵀS)_j² of eigenvectors S, each (..., s, D)."""
        d = self.space.inside.shape[-1]
        W = (self.space.right * ~self.space.inside.unsqueeze(-1)).double()
        z = torch.zeros_like(vectors[..., 0])
        z[..., :d] = self.y.double() @ W.mT
        z[..., d] = self.joined.length
        captured = vectors[..., :d, :] ** 2 * self.space.inside[..., None, :, None]
        return captured.sum(-2), (z.unsqueeze(-2) @ vectors).squeeze(-2) ** 2

    def _mean_log(self) -> Tensor:
        """The constant c as the block sees it, (...)."""
        nodes, S = spectrum(self.space.matrix, self.space.squared)
        captured = log_sum(nodes, (S**2 * self.space.inside.unsqueeze(-1)).sum(-2))
        rest = self.y.shape[-1] - self.space.inside.sum(-1)
        return mean_log(nodes, S, self.found.start, captured, rest)


def centres(forms: Tensor, squares: Tensor, fallback: Tensor) -> Tensor:
    r"""The constant c of every probe, from the others: independent of it, given Q, (..., s).

    .. math:: c_i = \sum_{j \ne i} y_j^\top \log(A) y_j \Big/ \sum_{j \ne i} |y_j|^2

    Args:
        forms: yᵀ log(A) y, (..., s).
        squares: |y|², (..., s).
        fallback: c where no other probe has anything outside Q, (...).
    """
    # A probe that failed is told by its own sample.
    sound = torch.where(torch.isfinite(forms), forms, 0)
    others = squares.sum(-1, keepdim=True) - squares
    ratio = (sound.sum(-1, keepdim=True) - sound) / others
    return torch.where(others > 1e-3 * squares, ratio, fallback.unsqueeze(-1))


def mean_log(
    nodes: Tensor, vectors: Tensor, start: Tensor, captured: Tensor, rest: Tensor
) -> Tensor:
    r"""Mean of log over the complement of Q, as the probes of the block see it, (...).

    .. math:: \frac{1}{n - d} \Bigl(\frac1b \sum_{i=1}^b x_i^\top W \log(T) W^\top x_i
              - \operatorname{tr} [\log T]_{QQ}\Bigr)

    within the range of log T.

    Args:
        nodes: Eigenvalues of T, (..., d).
        vectors: Its eigenvectors, (..., d, d).
        start: Coordinates of the probes in the first block, (..., b, b).
        captured: tr [log T]_QQ, (...).
        rest: n − d, (...).
    """
    weights = (start @ vectors[..., : start.shape[-1], :]) ** 2
    logs = log_sum(nodes.unsqueeze(-2), weights).mean(-1)
    mean = (logs - captured) / rest.clamp(min=1)
    return mean.clamp(nodes.amin(-1).log(), nodes.amax(-1).log())


def split_probes(A: LinearOperator, probes: Tensor, num_block: int) -> tuple[Tensor, Tensor]:
    """Rows of the first `num_block` probes and of the others.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If no probe is left for either part, or probes do not fit A.
    """
    rows = check_probes(A, probes)
    m = rows.shape[-2]
    if not 1 <= num_block < m:
        raise ValueError(
            f"num_block must be between 1 and m - 1 = {m - 1}, got {num_block}: the other probes "
            "estimate the remainder, so pass more probes or a smaller block."
        )
    return rows[..., :num_block, :], rows[..., num_block:, :]


def _check_block(block_steps: int, extra_steps: int) -> None:
    if block_steps < 0 or extra_steps < 1:
        raise ValueError(
            "A captured space needs block_steps ≥ 0 and extra_steps ≥ 1, got "
            f"{block_steps} and {extra_steps}."
        )


def _remainder(rows: Tensor, space: Shared) -> tuple[Tensor, Tensor]:
    """The parts of the probes outside Q, and outside the whole shared space."""
    y = complement(rows, space.right * space.inside.unsqueeze(-1))
    return y, complement(y, space.right)
