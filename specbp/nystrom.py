r"""log det by a Nyström preconditioner, known exactly, and quadrature of what it leaves.

.. math:: \log\det A = \log\det P + \operatorname{tr} \log\bigl(P^{-1/2} A P^{-1/2}\bigr)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from specbp import bounds, quadrature
from specbp.estimate import Estimate, Status, from_samples
from specbp.krylov import Tridiagonal, lanczos
from specbp.operators import (
    CountingOperator,
    LinearOperator,
    as_operator,
    check_probes,
    check_square,
    check_steps,
    product,
)


def nystrom_logdet(
    A: Any,
    probes: Tensor,
    *,
    num_sketch: int,
    num_steps: int,
    shift: float | Tensor | None = None,
    lower: float | Tensor | None = None,
) -> Estimate:
    r"""log det A by Lanczos quadrature of A preconditioned by a randomised Nyström approximation.

    .. math:: \log\det A = \log\det P + \mathbb{E}\, x^\top \log(P^{-1/2} A P^{-1/2})\, x, \qquad
              P = U (\hat\Lambda + \mu) U^\top + (\hat\lambda_s + \mu) (I - U U^\top)

    The first s probes sketch K = A − μI ≈ U Λ̂ Uᵀ, which fixes P and its log det; the others see
    the preconditioned operator. It is close to a multiple of I where K decays, so that few steps
    have little bias, and its logarithm is small: the variance is 2 ‖log(P^{-1/2} A P^{-1/2})‖²
    off the diagonal. On a flat, wide spectrum nothing is gained. The correction is exact for every
    sketch; a poor one only costs variance.

    Given the sketch, samples are independent and the standard error is calibrated; the truncation
    error varies with the sketch, which it does not show. The Gauss rule over-estimates for every
    probe: `Estimate.upper` is the value, the bracket being that of log det P +
    mean xᵀ log(P^{-1/2} A P^{-1/2}) x, whose expectation is log det A.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device, m > num_sketch.
        num_sketch: Probes s ≥ 1 of the sketch, min(s, n) products. Exact for s ≥ n.
        num_steps: Lanczos steps k, 1 … n; k products for each of the other m − s probes. The rule
            is exact at k = n.
        shift: μ > 0, (...): the noise of A = K + μI; default none, so that the smallest Nyström
            eigenvalue of A itself stands for those that the sketch misses.
        lower: A lower bound of λ_min(A), (...), if one is known; the lower end of the bracket is
            sharp for shift = lower.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes, devices, num_sketch, num_steps, shift or lower do not fit.

    A failed probe (negative Ritz value, NaN, asymmetry) makes its estimate NaN, with a status, and
    so does a sketch that proves A indefinite, not symmetric or not finite. The small algebra is
    float64; the value carries no gradient.

    Source: Frangella, Tropp & Udell (2023), doi:10.1137/21M1466244, for P; stable sketch: Tropp,
        Yurtsever, Udell & Cevher (2017), arXiv:1706.05736; preconditioned log det: Wenger,
        Pleiss, Hennig, Cunningham & Gardner (2022), arXiv:2107.00243.

    Example:
        >>> import torch
        >>> A = torch.diag(torch.tensor([9.0, 1.0, 1.0, 1.0], dtype=torch.float64))
        >>> X = torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1]], dtype=torch.float64).mT
        >>> est = nystrom_logdet(A, X, num_sketch=1, num_steps=2, shift=1.0)
        >>> est.num_matvecs
        3.0
    """
    A = CountingOperator(as_operator(A))
    check_steps(num_steps, check_square(A))
    rows = check_probes(A, probes)
    check_sketch(num_sketch, rows.shape[-2])
    P, sketched = nystrom_preconditioner(A, rows[..., :num_sketch, :], shift)
    T = lanczos(Whitened(A, P), rows[..., num_sketch:, :].contiguous(), num_steps)
    rule = quadrature.gauss(T)
    known = P.log_det.unsqueeze(-1)
    below = None
    if lower is not None:
        node = P.smallest_ratio(bounds.positive(lower, "lower", rows)).unsqueeze(-1)
        below = known + quadrature.gauss_radau(T, node).value.nan_to_num(nan=-torch.inf)
    return from_samples(
        known + rule.value,
        num_matvecs=A.num_matvecs,
        lower=below,
        upper=known + rule.value,
        status=whitened_status(T, rule, P, torch.finfo(A.dtype).eps) | sketched.unsqueeze(-1),
    )


class Preconditioner(NamedTuple):
    r"""P = U diag(d) Uᵀ + c (I − U Uᵀ), float64.

    Attributes:
        vectors: Uᵀ as rows, (..., r, n).
        values: d ≥ c > 0, descending, (..., r).
        rest: c, (...).
        shift: μ less the shift that keeps the sketch stable, (...): A − shift·I ≥ U(d − shift)Uᵀ
            wherever A ≥ μI.
    """

    vectors: Tensor
    values: Tensor
    rest: Tensor
    shift: Tensor

    @property
    def log_det(self) -> Tensor:
        """Log det P, (...)."""
        excess = (self.values / self.rest.unsqueeze(-1)).log().sum(-1)
        return excess + self.vectors.shape[-1] * self.rest.log()

    @property
    def cond(self) -> Tensor:
        """Largest value of P by the smallest, (...)."""
        return self.values[..., 0] / self.rest

    def smallest_ratio(self, lower: Tensor) -> Tensor:
        r"""A lower bound of λ_min(P^{-1/2} A P^{-1/2}) from one of λ_min(A), (...).

        If A ≥ lower ≥ μ, then A ≥ θ (Â + μ) + (1 − θ) lower for every θ in [0, 1], and the right
        side commutes with P; θ is where its two smallest ratios are equal. Otherwise θ = 0.
        """
        p, q, r = self.shift / self.rest, lower / self.rest, lower / self.values[..., 0]
        theta = ((q - r) / (1 - r + q - p)).clamp(0, 1)
        theta = theta.masked_fill(~(self.shift <= lower) | (1 - r + q - p <= 0), 0)
        return torch.minimum(q - theta * (q - p), r + theta * (1 - r))


@torch.no_grad()
def nystrom_preconditioner(
    A: LinearOperator, sketch: Tensor, shift: float | Tensor | None = None
) -> tuple[Preconditioner, Tensor]:
    r"""Preconditioner from the products of A with the rows of `sketch` (..., s, n), and a status.

    .. math:: \hat K = K Q (Q^\top K Q)^+ Q^\top K, \qquad K = A - \mu I, \quad
              Q = \operatorname{orth}(\Omega)

    Computed for K + νI with ν of the size of the rounding in A Q, and ν is subtracted from the
    eigenvalues. The approximation depends on the range of the sketch only: of probes that are
    linearly dependent only those count that are not. `shift` (...) is μ > 0, or none.

    Raises:
        ValueError: If shift is not positive or does not fit the batch.
    """
    eps, mu = torch.finfo(A.dtype).eps, sketch.new_zeros(sketch.shape[:-2], dtype=torch.float64)
    mu = mu if shift is None else bounds.positive(shift, "shift", sketch)
    finite = torch.isfinite(sketch).all((-2, -1))
    Q, rank = _row_space(sketch.double().masked_fill(~finite[..., None, None], 0), eps)
    Q = Q.to(A.dtype)
    Y = product(A, Q).double()
    finite = finite & torch.isfinite(Y).all((-2, -1))
    Q, Y = Q.double(), Y.masked_fill(~finite[..., None, None], 0)
    nu = eps * torch.linalg.matrix_norm(Y)
    ritz, V, status = _rayleigh(Q, Y, nu, eps)
    core = ritz + (nu - mu).unsqueeze(-1)
    # Where K is not positive to rounding, nothing is known: such directions stay with the rest.
    weights = torch.where(core > nu.unsqueeze(-1) / 2, core, torch.inf).rsqrt()
    B = weights.unsqueeze(-1) * (V.mT @ (Y + (nu - mu)[..., None, None] * Q))
    _, sigma, U = torch.linalg.svd(B, full_matrices=False)
    values = (sigma**2 - nu.unsqueeze(-1)).clamp(min=0) + mu.unsqueeze(-1)
    rest = torch.maximum(values.gather(-1, (rank - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1), nu)
    rest = torch.where(rest > 0, rest, 1)
    values = torch.maximum(values, rest.unsqueeze(-1))
    status = torch.where(finite, status, int(Status.NONFINITE))
    return Preconditioner(U, values, rest, mu - nu), status


class Whitened:
    """P^{-1/2} A P^{-1/2}, in the dtype of A; one product with A for each column."""

    def __init__(self, operator: LinearOperator, P: Preconditioner):
        c = P.rest[..., None, None]
        self.operator = operator
        self._vectors = P.vectors.to(operator.dtype)
        self._weights = ((c.squeeze(-1) / P.values).sqrt() - 1).unsqueeze(-2).to(operator.dtype)
        self._scale = c.rsqrt().to(operator.dtype)

    shape = property(lambda self: self.operator.shape)
    dtype = property(lambda self: self.operator.dtype)
    device = property(lambda self: self.operator.device)

    def __matmul__(self, X: Tensor) -> Tensor:
        return self._half(product(self.operator, self._half(X.mT))).mT

    def _half(self, rows: Tensor) -> Tensor:
        along = (rows @ self._vectors.mT) * self._weights
        return self._scale * (rows + along @ self._vectors)


def _row_space(rows: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Orthonormal rows (..., min(s, n), n), zero beyond the rank (...) of `rows`."""
    _, sigma, right = torch.linalg.svd(rows, full_matrices=False)
    live = sigma > max(rows.shape[-2:]) * eps * sigma[..., :1]
    return right * live.unsqueeze(-1), live.sum(-1)


def _rayleigh(Q: Tensor, Y: Tensor, nu: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values and vectors of A from Y = A Q, and what they prove of A, (...)."""
    core = Y @ Q.mT
    scale = core.abs().amax((-2, -1))
    skew = (core - core.mT).abs().amax((-2, -1)) > eps**0.5 * scale
    ritz, V = torch.linalg.eigh((core + core.mT) / 2)
    negative = ritz[..., 0] < -4 * nu
    return ritz, V, skew * int(Status.NONSYMMETRIC) | negative * int(Status.NEGATIVE_RITZ)


def whitened_status(T: Tridiagonal, rule: quadrature.Rule, P: Preconditioner, eps: float) -> Tensor:
    """Flags per probe: rounding is that of A, which the smallest value of P amplifies."""
    cond = P.cond.unsqueeze(-1)
    floor = 4 * eps * torch.maximum(rule.largest, cond)
    return (
        T.closed * int(Status.INVARIANT_SUBSPACE)
        | (rule.smallest < -floor) * int(Status.NEGATIVE_RITZ)
        | (rule.smallest.abs() <= floor) * int(Status.SINGULAR)
        | (T.asymmetry > eps**0.5 * cond) * int(Status.NONSYMMETRIC)
    )


def check_sketch(num_sketch: int, m: int) -> None:
    """Refuse a sketch that leaves no probe.

    Raises:
        ValueError: If num_sketch < 1 or num_sketch ≥ m.
    """
    if not 1 <= num_sketch < m:
        raise ValueError(
            f"num_sketch must be between 1 and m - 1 = {m - 1} for m = {m} probes, got "
            f"{num_sketch}: the other probes estimate what the sketch leaves. Pass more probes."
        )
