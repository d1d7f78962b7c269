r"""Log-determinant by deflating Ritz vectors and a Chebyshev expansion on what remains.

For any orthonormal U, of Ritz vectors or not, with P = UUᵀ and Ã the compression of A to the
complement (Fischer's inequality, with what it leaves out)

.. math:: \log\det A = \log\det U^\top A U + \log\det \tilde A
          - \log\det\bigl(I + S^{-1} F \Theta^{-1} F^\top\bigr), \qquad F = (I - P) A U,

where S ≽ λ_min I is the Schur complement. So a pair (θ, u) that is not exact costs at most
log(1 + |Au − θu|² / (θ λ_min)), of the second order in its residual, and the polynomial meets Ã, in
whose recurrence the deflated directions never appear.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from specbp import bounds, polynomials
from specbp.block import ROUNDINGS, BlockKrylov, block_lanczos
from specbp.deflation import centres, mean_log, split_probes
from specbp.estimate import Estimate, Status, from_samples
from specbp.operators import CountingOperator, LinearOperator, as_operator, check_square
from specbp.subspace import complement, log_sum, shared_space, spectrum

CONVERGED = 1e-3  # nats that a deflated pair may cost
MARGIN = 1.1  # a cluster reaches beyond those of its Ritz values that have not converged


@torch.no_grad()
def deflated_chebyshev_logdet(
    A: Any,
    probes: Tensor,
    *,
    num_block: int,
    block_steps: int,
    degree: int,
    interval: tuple[float | Tensor, float | Tensor],
) -> Estimate:
    r"""log det A with converged Ritz pairs deflated, the rest by Chebyshev expansion of log.

    .. math:: \sum_{j=1}^d \log\theta_j + y_i^\top p(\tilde A) y_i
              - c_i \bigl(|y_i|^2 - (n - d)\bigr),
              \qquad y_i = (I - P) x_i, \quad \tilde A = (I - P) A (I - P)

    The first b probes start block Lanczos steps; of its Ritz pairs those are deflated whose
    residual costs at most 1e-3 nats each. The other probes give an estimate that is unbiased, given
    P, for Σ log θ_j + tr p(Ã) on the complement.

    Where the pairs at an end of the spectrum are deflated, the interval of p shrinks to the other
    Ritz values, their residuals and a tenth: an estimate, not a bound. |T_k y| ≤ |y| proves it
    wrong; then the expansion runs again on the interval given, its products counted, or, if that is
    proved wrong too, the estimate fails with `OUTSIDE_INTERVAL`. `Estimate.lower` and
    `Estimate.upper` hold what p and the residuals miss on the interval given, and are infinite on a
    shrunk one.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, b + s), independent, of A's dtype and device.
        num_block: Block size b, 1 … m − 1.
        block_steps: Block Lanczos steps q ≥ 1.
        degree: Degree d ≥ 1 of p.
        interval: (a, b) with 0 < a ≤ λ_min and λ_max ≤ b, each (...).

    Costs b q + s ⌈d/2⌉ products, s ⌈d/2⌉ more if an interval is proved wrong.

    The value carries no gradient.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If an argument is out of its range or shapes do not fit.

    Source: Han, Malioutov & Shin (2015), arXiv:1503.06394, for p; Horn & Johnson (2013), Matrix
        Analysis, 7.8, for Fischer's inequality. Deflation as in Gambhir, Stathopoulos & Orginos
        (2017), doi:10.1137/16M1066361.
    """
    if degree < 1 or block_steps < 1:
        raise ValueError(f"degree and block_steps are at least 1, got {degree} and {block_steps}.")
    A = CountingOperator(as_operator(A))
    check_square(A)
    start, rows = split_probes(A, probes, num_block)
    a, b = bounds.interval(*interval, rows)
    found = block_lanczos(A, start, block_steps)
    pairs = deflate(found, a)
    y = complement(rows, pairs.vectors)
    low, high = shrunk(pairs, a, b)
    for _ in range(2):
        values, slack, status = _expand(A, pairs, y, degree, low, high)
        outside = ((status & int(Status.OUTSIDE_INTERVAL)) != 0).any(-1)
        again = outside & ((low != a) | (high != b))
        if not bool(again.any()):
            break
        low, high = torch.where(again, a, low), torch.where(again, b, high)
    squares = torch.linalg.vector_norm(y.double(), dim=-1) ** 2
    shift = centres(values, squares, pairs.mean) * (squares - pairs.rest.unsqueeze(-1))
    values = values + pairs.value.unsqueeze(-1) - shift
    certain = ((low == a) & (high == b)).unsqueeze(-1)
    slack = torch.where(certain, slack, torch.inf)
    return from_samples(
        values,
        num_matvecs=A.num_matvecs,
        lower=values - slack - pairs.cost.unsqueeze(-1),
        upper=values + slack,
        status=status | _interval_status(pairs, a, b).unsqueeze(-1),
    )


class Pairs(NamedTuple):
    """The Ritz pairs of a block Krylov space and those of them that are deflated.

    Attributes:
        nodes: Ritz values θ, ascending, (..., d), float64.
        residuals: |Au − θu|, (..., d).
        deflated: True for those that are, (..., d).
        remaining: True for the others, lost directions excepted, (..., d).
        vectors: Ritz vectors as rows, zero where not deflated, (..., d, n).
        value: Σ log θ over the deflated, (...).
        cost: Most that it exceeds their part of log det A by, (...).
        mean: Mean of log over the complement, as the block sees it, (...).
        rest: Dimension of the complement, (...).
        status: Flags of the block, (...).
    """

    nodes: Tensor
    residuals: Tensor
    deflated: Tensor
    remaining: Tensor
    vectors: Tensor
    value: Tensor
    cost: Tensor
    mean: Tensor
    rest: Tensor
    status: Tensor


def deflate(found: BlockKrylov, lower: Tensor) -> Pairs:
    """Choose the Ritz pairs whose residuals cost less than `CONVERGED`, given λ_min ≥ lower."""
    space = shared_space(found, 0, None)
    nodes, S = spectrum(space.matrix, squared=False)
    n, s = found.basis.shape[-1], found.start.shape[-1]
    assert found.coupling is not None
    eps = torch.finfo(found.basis.dtype).eps
    rounding = ROUNDINGS * n**0.5 * eps * nodes.abs().amax(-1)
    left = S[..., -s:, :].mT @ found.coupling.nan_to_num()
    residuals = (left.square().sum(-1) + rounding.unsqueeze(-1) ** 2).sqrt()
    kept = (S**2 * found.kept.unsqueeze(-1)).sum(-2) > 0.5
    weight = residuals**2 / (nodes * lower.unsqueeze(-1))
    deflated = kept & (nodes > 0) & (torch.log1p(weight) <= CONVERGED)
    # Were all of them deflated, nothing would show where the rest of the spectrum is.
    open_ended = (found.coupling != 0).any(-1).any(-1) & (found.rank < n)
    worst = weight.masked_fill(~kept, -torch.inf)
    worst = worst == worst.amax(-1, keepdim=True)
    alone = (deflated | ~kept).all(-1) & open_ended
    deflated = deflated & ~(worst & alone.unsqueeze(-1))
    scaled = (left / nodes.clamp_min(torch.finfo(nodes.dtype).tiny).sqrt().unsqueeze(-1)) * (
        deflated.unsqueeze(-1)
    )
    # Columns of F are scaled by θ^(−1/2): det(I + Θ^(−1/2) FᵀF Θ^(−1/2) / a).
    gram = scaled.mT @ scaled / lower[..., None, None]
    noise = (rounding.unsqueeze(-1) ** 2 / (nodes.abs() * lower.unsqueeze(-1)) * deflated).sum(-1)
    cost = torch.log1p(torch.linalg.eigvalsh(gram.nan_to_num()).clamp(min=0)).sum(-1) + noise
    spoiled = ~torch.isfinite(nodes).all(-1)
    value = log_sum(nodes, deflated.double()).masked_fill(spoiled, torch.nan)
    rest = n - deflated.sum(-1)
    skew = (found.asymmetry > eps**0.5) * int(Status.NONSYMMETRIC)
    return Pairs(
        nodes,
        residuals,
        deflated,
        kept & ~deflated,
        (S.mT.to(found.basis.dtype) @ found.basis) * deflated.unsqueeze(-1),
        value,
        cost,
        mean_log(nodes, S, found.start, value, rest),
        rest,
        skew | (found.rank < found.kept.shape[-1]) * int(Status.INVARIANT_SUBSPACE),
    )


def shrunk(pairs: Pairs, lower: Tensor, upper: Tensor) -> bounds.Interval:
    """The interval for what remains: within [lower, upper], at an end that is deflated."""
    theta, rho = pairs.nodes, pairs.residuals
    high = (theta + rho).masked_fill(~pairs.remaining, -torch.inf).amax(-1)
    low = (theta - rho).masked_fill(~pairs.remaining, torch.inf).amin(-1)
    # An end whose extreme pair has not converged says nothing about what lies beyond.
    largest = theta.masked_fill(~pairs.remaining, -torch.inf).amax(-1)
    smallest = theta.masked_fill(~pairs.remaining, torch.inf).amin(-1)
    top = (pairs.deflated & (theta > largest.unsqueeze(-1))).any(-1)
    bottom = (pairs.deflated & (theta < smallest.unsqueeze(-1))).any(-1)
    high = torch.where(top, torch.minimum(MARGIN * high, upper), upper)
    low = torch.where(bottom, torch.maximum(low / MARGIN, lower), lower)
    some = pairs.remaining.any(-1) & (low < high)
    return bounds.Interval(torch.where(some, low, lower), torch.where(some, high, upper))


class _Deflated:
    """(I − P) A + centre·P: the compression of A to the complement, for vectors of it.

    Rounding leaves a vector with a part in P; were the operator zero there, outside the interval,
    the recurrence would make it grow. In the middle of the interval it does not.
    """

    def __init__(self, operator: LinearOperator, basis: Tensor, centre: Tensor):
        self.operator, self.basis = operator, basis
        self.centre = centre.to(basis)[..., None, None]

    shape = property(lambda self: self.operator.shape)
    dtype = property(lambda self: self.operator.dtype)
    device = property(lambda self: self.operator.device)

    def __matmul__(self, X: Tensor) -> Tensor:
        images = self.operator @ X
        return images + self.basis.mT @ (self.basis @ (self.centre * X - images))


def _expand(
    A: LinearOperator, pairs: Pairs, y: Tensor, degree: int, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """yᵀ p(Ã) y of every row, what |p − log| on [a, b] may add to it, and flags, each (..., s)."""
    operator = _Deflated(A, pairs.vectors, (a + b) / 2)
    seen = polynomials.chebyshev_moments(operator, y, degree, a, b)
    values = (seen.moments * polynomials.chebyshev_series(degree, a, b).unsqueeze(-2)).sum(-1)
    root = (b / a).sqrt()
    rho = (root + 1) / (root - 1)
    sup = 2 * rho**-degree / ((degree + 1) * (rho - 1))
    # Products are rounded to eps |A|, which deflation leaves much larger than b.
    eps, size = torch.finfo(A.dtype).eps, torch.maximum(pairs.nodes.abs().amax(-1), b)
    amplified = ((size + b + a) / (b - a)).unsqueeze(-1)
    outside = seen.growth > 1 + 16 * (degree + 1) ** 2 * eps * amplified
    asymmetric = seen.asymmetry > eps**0.5 * amplified
    status = outside * int(Status.OUTSIDE_INTERVAL) | asymmetric * int(Status.NONSYMMETRIC)
    return values, sup.unsqueeze(-1) * seen.moments[..., 0], status


def _interval_status(pairs: Pairs, a: Tensor, b: Tensor) -> Tensor:
    """The flags of the block, and whether a Ritz value proves the interval wrong, (...)."""
    # Every residual holds the rounding of A.
    theta, rounding = pairs.nodes, pairs.residuals.amin(-1, keepdim=True)
    beyond = (theta < a.unsqueeze(-1) - rounding) | (theta > b.unsqueeze(-1) + rounding)
    beyond = (beyond & (pairs.deflated | pairs.remaining)).any(-1)
    return pairs.status | beyond * int(Status.OUTSIDE_INTERVAL)
