r"""Trace estimators that spend part of their products on a low-rank approximation.

The variance is that of what the approximation leaves: where the spectrum decays, far less than that
of Hutchinson's estimator at the same number of products. Blocks are promoted to float64 between the
products, which stay in the operator's dtype. The values carry no gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specbp.estimate import Estimate, Status, from_samples, untruncated
from specbp.operators import CountingOperator, as_operator, check_probes, check_square


@torch.no_grad()
def hutchpp_trace(A: Any, probes: Tensor) -> Estimate:
    r"""Trace of A, exact on the image of a sketch and by Hutchinson's estimator beside it.

    .. math:: \operatorname{tr} A \approx \operatorname{tr} Q^\top A Q + \frac1{|G|} \sum_{g \in G}
              g^\top (I - QQ^\top) A (I - QQ^\top) g, \qquad Q = \operatorname{orth}(A S)

    The first ⌊m/2⌋ probes are the sketch S, the others the residual G: 2 |S| + |G| = m + ⌊m/2⌋
    products, split equally over the three blocks. Unbiased for any isotropic law of G that is
    independent of S, so not for one block of `orthogonal` probes; A need not be symmetric. Exact if
    rank A ≤ |S|.

    Given Q the residual values are independent, each with mean tr A, so E[se²] = Var holds for the
    whole estimate; it takes two of them, m ≥ 3, or the standard error is NaN.

    Args:
        A: Operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device. `Estimate.samples` has one value for each of
            the m − ⌊m/2⌋ residual probes.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices do not fit.

    Source: Meyer, Musco, Musco & Woodruff (2021), arXiv:2010.09649.

    Example:
        >>> import torch
        >>> A = 2 * torch.ones(4, 4, dtype=torch.float64)  # of rank one
        >>> X = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, 1, -1, 1], [1, -1, 1, -1]])
        >>> print(hutchpp_trace(A, X.double()))
        8.0000 ± 0.0000
    """
    A, X = _prepare(A, probes)
    S, G = X.tensor_split([X.shape[-1] // 2], dim=-1)
    low_rank = torch.zeros(X.shape[:-2], dtype=torch.float64, device=X.device)
    if S.shape[-1]:
        # Whatever fills Q where A S has no full rank depends on S alone: nothing is biased by it.
        image, sound = _scaled(A @ S)
        Q = torch.linalg.qr(image).Q.to(A.dtype)
        low_rank = _dot(Q, A @ Q).sum(-1).masked_fill(~sound, torch.nan)
        Q = Q.double()
        G = (G - Q @ (Q.mT @ G.double())).to(A.dtype)
    values = low_rank.unsqueeze(-1) + _dot(G, A @ G)
    return untruncated(from_samples(values, num_matvecs=A.num_matvecs))


@torch.no_grad()
def xtrace(A: Any, probes: Tensor, *, resphere: bool = True) -> Estimate:
    r"""Trace of A, where each probe in turn is the residual and the others are the sketch.

    .. math:: \operatorname{tr} A \approx \frac1m \sum_{i=1}^m
              \operatorname{tr} P_i A + c_i \, \mu_i^\top A \mu_i, \quad
              \mu_i = (I - P_i)\, x_i, \quad P_i \text{ onto } \operatorname{range} A X_{-i}

    All P_i come from one orthonormal basis of A X by a downdate, in O(n m²). Two products for each
    probe. A need not be symmetric. Exact if rank A < m.

    Plain (`resphere=False`): c_i = 1, unbiased for independent probes of any isotropic law.
    Resphered: c_i = (n − rank P_i) / |μ_i|² drops the length of the residual and its variance; the
    value does not depend on the length of any probe, and is unbiased for independent probes of
    rotation-invariant laws, `sphere` and `gaussian`, only: Rademacher probes make it biased. A
    probe that lies in the image of the others has no residual to stretch, and adds none.

    The leave-one-out values, `Estimate.samples`, depend on each other, and their std / √m falls
    short of the error, the more the faster the spectrum decays: the standard error is NaN. The mean
    over several independent blocks has one.

    Args:
        A: Operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device.
        resphere: As above.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices do not fit.

    Source: Epperly, Tropp & Webber (2024), arXiv:2301.07825.

    Example:
        >>> import torch
        >>> A = 2 * torch.ones(4, 4, dtype=torch.float64)  # of rank one
        >>> X = torch.tensor([[1.0, 1], [1, 1], [1, 1], [1, -1]], dtype=torch.float64)
        >>> print(xtrace(A, X))
        8.0000
    """
    A, X = _prepare(A, probes)
    Y = A @ X
    image, sound = _scaled(Y)
    others = _leave_one_out(image, A.dtype)
    Q = others.basis.to(A.dtype)
    AQ, Q, X, Y, S = (A @ Q).double(), Q.double(), X.double(), Y.double(), others.removed
    H, W = Q.mT @ AQ, Q.mT @ X
    V = W - S * _dot(S, W).unsqueeze(-2)
    M = X - Q @ V
    residual = _dot(M, Y - AQ @ V)
    if resphere:
        residual = residual * _stretch(_dot(M, M), X, others.rank, A.dtype)
    low_rank = H.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) - _dot(S, H @ S)
    values = (low_rank + residual).masked_fill(~sound.unsqueeze(-1), torch.nan)
    return _without_error_bar(from_samples(values, num_matvecs=A.num_matvecs))


@torch.no_grad()
def xnystrace(A: Any, probes: Tensor, *, resphere: bool = True) -> Estimate:
    r"""Trace of a positive semidefinite A from one product for each probe.

    .. math:: \operatorname{tr} A \approx \frac1m \sum_{i=1}^m
              \operatorname{tr} A_i + c_i \, x_i^\top (A - A_i)\, x_i, \quad
              A_i = A X_{-i} (X_{-i}^\top A X_{-i})^{-1} X_{-i}^\top A

    All Nyström approximations A_i come from that of X by a downdate, in O(n m²). Exact to rounding
    if rank A < m. The estimate is that of A + νI less νn, with ν of the size of rounding: without
    bias, and stable where the spectrum decays below rounding.

    Plain (`resphere=False`): c_i = 1, unbiased for independent probes of any isotropic law.
    Resphered: c_i = (n − m + 1) / |μ_i|², μ_i the part of x_i outside the span of the others,
    unbiased for rotation-invariant laws only: `sphere`, `gaussian`, and `orthogonal`, where the
    others leave x_i uniform beside their span. The standard error is NaN, as in `xtrace`.

    A negative Ritz value on the span of the probes proves A indefinite: the value is NaN, with
    `NEGATIVE_RITZ`, or `NONSYMMETRIC` for skew beyond √eps; `xtrace` needs neither property. An
    indefinite A without a negative Ritz value goes unnoticed.

    Args:
        A: Positive semidefinite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device.
        resphere: As above.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes or devices do not fit.

    Source: Epperly, Tropp & Webber (2024), arXiv:2301.07825.

    Example:
        >>> import torch
        >>> A = 2 * torch.ones(4, 4, dtype=torch.float64)  # of rank one
        >>> X = torch.tensor([[1.0, 1], [1, 1], [1, 1], [1, -1]], dtype=torch.float64)
        >>> print(xnystrace(A, X))
        8.0000
    """
    A, X = _prepare(A, probes)
    span, sound = _scaled(X)
    others = _leave_one_out(span, A.dtype)
    Q = others.basis.to(A.dtype)
    Z, n = A @ Q, X.shape[-2]
    size = torch.linalg.vector_norm(Z, dim=(-2, -1), dtype=torch.float64)
    Z, Q, X, S = _divided(Z, size), Q.double(), X.double(), others.removed
    shift = 4 * torch.finfo(A.dtype).eps
    V, ritz, status = _ritz(Q.mT @ Z, shift, A.dtype)
    # The approximation is F Fᵀ. With K⁻¹ formed, what nearly cancels in Z V would be divided twice.
    F = (Z + shift * Q) @ V * ritz.rsqrt().unsqueeze(-2)
    p = V.mT @ S * ritz.rsqrt().unsqueeze(-1)
    # Without sᵢ the approximation loses (F p)(F p)ᵀ / |p|², of which 1 / |p|² lies along sᵢ itself.
    share = _dot(p, p).reciprocal().masked_fill(~others.essential, 0)
    along = _dot(S, Q.mT @ X).square()
    if resphere:
        along = along * _stretch(along, X, others.rank, A.dtype)
    low_rank = _dot(F, F).sum(-1, keepdim=True) - _dot(F @ p, F @ p) * share
    values = (low_rank + along * share - shift * n) * size.unsqueeze(-1)
    values = values.masked_fill(~sound.unsqueeze(-1), torch.nan)
    status = status.unsqueeze(-1).expand(values.shape)
    return _without_error_bar(from_samples(values, num_matvecs=A.num_matvecs, status=status))


class _LeaveOneOut(NamedTuple):
    """Spans of all columns but one: basis (I − sᵢ sᵢᵀ) basisᵀ projects on that without column i.

    Attributes:
        basis: Orthonormal, (..., n, m), zero beyond the rank.
        removed: sᵢ as columns, (..., m, m); zero where column i lies in the span of the others.
        essential: Where it does not, (..., m).
        rank: Rank of each span, (..., m).
    """

    basis: Tensor
    removed: Tensor
    essential: Tensor
    rank: Tensor


def _leave_one_out(Y: Tensor, dtype: torch.dtype) -> _LeaveOneOut:
    """The spans of the columns of Y (..., n, m), known to the rounding of `dtype`.

    With Y = QR the direction sᵢ is column i of R⁻ᵀ, normalised; from the singular values of R it is
    defined, and found, for dependent columns too. A tolerance above rounding would bias: directions
    cut off there leave projectors that depend on column i.
    """
    m, eps = Y.shape[-1], torch.finfo(dtype).eps
    Q, R = torch.linalg.qr(Y)
    R = torch.nn.functional.pad(R, (0, 0, 0, m - R.shape[-2]))
    U, sigma, Vh = torch.linalg.svd(R)
    rounding = 4 * eps + 16 * m**0.5 * torch.finfo(torch.float64).eps
    kept = sigma > rounding * sigma[..., :1]
    null = torch.linalg.vector_norm(Vh.masked_fill(kept.unsqueeze(-1), 0), dim=-2)
    essential = null <= eps**0.5
    S = Vh * sigma.reciprocal().masked_fill(~kept, 0).unsqueeze(-1)
    S = torch.nn.functional.normalize(S, dim=-2).masked_fill(~essential.unsqueeze(-2), 0)
    return _LeaveOneOut(
        basis=(Q @ U[..., : Q.shape[-1], :]).masked_fill(~kept.unsqueeze(-2), 0),
        removed=S,
        essential=essential,
        rank=kept.sum(-1, keepdim=True) - essential.long(),
    )


def _ritz(K: Tensor, shift: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvectors of K, |K| ≤ 1, its eigenvalues plus shift, positive, and what they prove."""
    asymmetric = (K - K.mT).abs().amax((-2, -1)) > torch.finfo(dtype).eps ** 0.5
    ritz, V = torch.linalg.eigh((K + K.mT) / 2)
    negative = ritz[..., 0] < -shift / 2
    status = asymmetric * int(Status.NONSYMMETRIC) | negative * int(Status.NEGATIVE_RITZ)
    return V, (ritz + shift).clamp_min(shift / 2), status


def _stretch(square: Tensor, X: Tensor, rank: Tensor, dtype: torch.dtype) -> Tensor:
    """(n − rank) / |μ|² for each residual of squared length `square`, 0 where that is rounding."""
    n, m = X.shape[-2:]
    rounding = (16 * m**0.5 * torch.finfo(dtype).eps) ** 2 * _dot(X, X)
    return ((n - rank) / square).masked_fill(square <= rounding, 0)


def _prepare(A: Any, probes: Tensor) -> tuple[CountingOperator, Tensor]:
    """The counted operator, and the probes (..., n, m) broadcast against its batch."""
    A = CountingOperator(as_operator(A))
    check_square(A)
    return A, check_probes(A, probes).mT


def _scaled(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Y / max|Y| in float64, zero where that is not finite, and where it is, (...)."""
    largest = Y.double().abs().amax((-2, -1))
    return _divided(Y, largest), torch.isfinite(largest)


def _divided(Y: Tensor, size: Tensor) -> Tensor:
    """Y / size in float64; LAPACK raises on NaN, so that items without a finite size are zero."""
    bad = ~torch.isfinite(size) | (size == 0)
    return (Y.double() / size[..., None, None]).masked_fill(bad[..., None, None], 0)


def _dot(X: Tensor, Y: Tensor) -> Tensor:
    """Products of columns, (..., n, m), (..., n, m) -> (..., m), in float64."""
    return torch.linalg.vecdot(X.double(), Y.double(), dim=-2)


def _without_error_bar(found: Estimate) -> Estimate:
    return replace(found, standard_error=torch.full_like(found.value, torch.nan))
