r"""Rules of xᵀ log(A) x from block Krylov spaces: Gauss, Gauss–Radau, and the limit of a sequence.

.. math:: x^\top \tilde W \log(\tilde T) \tilde W^\top x \;\le\; x^\top \log(A) x
          \;\le\; x^\top W \log(T) W^\top x

The upper bound holds for any W that contains x (operator Jensen inequality), the lower one with T̃
extended so that a ≤ λ_min is an s-fold eigenvalue (Zimmerling, Druskin & Simoncini 2024,
arXiv:2407.21505).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from specbp.block import BlockKrylov

FRACTIONS = 4  # the sequence of Gauss values is taken after k/4, k/2, 3k/4 and k steps
DOUBT = 1.0  # of the truncation that the sequence predicts: the last Gauss value stays inside
EARLY = 4.0  # the same with fewer than eight steps, too early to see a trend
RESOLVED = 1e-8  # of λ_max: smaller eigenvalues are taken from B, whose squares would blur them
FLATTEST = -0.1  # exponent of an error in k beyond which no convergence is visible
SLOWEST = 0.85  # ratio of successive differences beyond which no convergence is visible


class Spectrum(NamedTuple):
    """Eigenpairs of WᵀAW: nodes (..., d), and vectors as columns (..., d, d).

    A lost direction has the node 1, whose logarithm is zero, and is not `kept`, (..., d).
    """

    nodes: Tensor
    vectors: Tensor
    kept: Tensor

    def forms(self, coordinates: Tensor) -> Tensor:
        """xᵀ log x for probes given by coordinates in the first directions, (..., s, ≤ d)."""
        weights = (coordinates @ self.vectors[..., : coordinates.shape[-1], :]).square()
        return _dot(weights, self.nodes.log().unsqueeze(-2))

    def trace(self) -> Tensor:
        """tr log over the space, (...)."""
        return self.nodes.log().sum(-1)


def _dot(weights: Tensor, logs: Tensor) -> Tensor:
    # A node without weight may be zero: 0 · log 0 must not become NaN.
    return torch.where(weights == 0, 0, weights * logs).sum(-1)


def spectrum(K: BlockKrylov) -> Spectrum:
    """Eigenpairs of T, or squared singular values and right singular vectors of B.

    A matrix that is not finite counts as the identity: LAPACK raises on it.
    """
    return _spectrum(K.matrix, K.kept, K.squared)


def _spectrum(matrix: Tensor, kept: Tensor, squared: bool) -> Spectrum:
    finite = torch.isfinite(matrix).all(-1).all(-1)
    if not bool(finite.all()):
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        matrix = torch.where(finite[..., None, None], matrix, identity)
    # Rounding is relative to the norm, and a one beside tiny entries would be all of it. Lost
    # directions come to lie above the spectrum instead, where their nodes are told apart.
    norm = torch.linalg.matrix_norm(matrix * kept.unsqueeze(-1), torch.inf)
    top = 2 * torch.where(norm > 0, norm, 1).unsqueeze(-1)
    if not bool(kept.all()):
        matrix = torch.where(torch.diag_embed(~kept), top.unsqueeze(-1), matrix)
    if squared:
        _, nodes, Vh = torch.linalg.svd(matrix)
        vectors = Vh.mT
    else:
        nodes, vectors = torch.linalg.eigh(matrix)
    real = nodes < 0.75 * top
    return Spectrum(torch.where(real, nodes.square() if squared else nodes, 1), vectors, real)


def squared(K: BlockKrylov) -> Tensor:
    """T = WᵀAW, formed from B after Golub–Kahan: in float64, where log needs no more of it."""
    return K.matrix.mT @ K.matrix if K.squared else K.matrix


def positive(T: Tensor, kept: Tensor) -> Spectrum:
    """Eigenpairs of T with nodes no smaller than the rounding of the largest."""
    nodes, vectors, real = _spectrum(T, kept, squared=False)
    floor = torch.finfo(T.dtype).eps * torch.where(real, nodes, 0).amax(-1, keepdim=True)
    return Spectrum(torch.where(real, torch.maximum(nodes, floor), 1), vectors, real)


def radau_forms(K: BlockKrylov, node: Tensor) -> Tensor:
    """Lower bounds of xᵀ log(A) x for the probes of a space, (..., s), for `node` ≤ λ_min (...,).

    −inf where `node` exceeds a Ritz value, hence λ_min: nothing is known of the lower end then.
    """
    s, d = K.start.shape[-1], K.matrix.shape[-1]
    assert K.coupling is not None
    T = squared(K)
    shift = torch.diag_embed(node.unsqueeze(-1) * K.kept)
    L, info = torch.linalg.cholesky_ex(T - shift)
    last = torch.zeros((d, s), dtype=T.dtype, device=T.device)
    last[d - s :] = torch.eye(s, dtype=T.dtype, device=T.device)
    Z = torch.linalg.solve_triangular(L, last @ K.coupling, upper=False)
    corner = Z.mT @ Z + node[..., None, None] * torch.eye(s, dtype=T.dtype, device=T.device)
    off = last @ K.coupling
    extended = torch.cat([torch.cat([T, off], -1), torch.cat([off.mT, corner], -1)], -2)
    kept = torch.nn.functional.pad(K.kept, (0, s), value=True)
    forms = _spectrum(extended, kept, squared=False).forms(K.start)
    unknown = (info != 0).unsqueeze(-1) | torch.isnan(forms)
    return forms.masked_fill(unknown, -torch.inf)


def extrapolated(K: BlockKrylov, forms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Truncation of the mean Gauss value, and how much of that is in doubt, each (...).

    .. math:: \sum_{i \ge 1} \Delta \, r^i q^{i(i+1)/2}, \qquad
              r = \frac{\Delta_3}{\Delta_2}, \quad q = \min\Bigl(1, \frac{\Delta_3 / \Delta_2}
              {\Delta_2 / \Delta_1}\Bigr)

    with Δ₁, Δ₂, Δ₃ = Δ the decreases between k/4, k/2, 3k/4 and k steps. The truncation error is a
    mixture of exponentials in the number of steps, for which Aitken's rule (q = 1) stops short of
    the limit; where the convergence accelerates, as it does when a space fills up, q < 1 says how.
    Where it slows down as a power of k does, the doubt reaches to the limit of that power. Nothing
    is predicted, and the doubt infinite, where fewer than four values exist or the decreases do
    not fall by 15 %.

    The third result, (..., s), is what each probe moved the first by, to first order; it sums to
    zero, and its spread is the chance in the extrapolation (delta method).
    """
    early = K.matrix.shape[-1] < 2 * FRACTIONS * forms.shape[-1]
    each = _sequence(K, forms)
    with torch.enable_grad():
        means = [values.mean(-1).detach().requires_grad_() for values in each]
        total, doubt = limit(means, early)
        slopes: Any = [None] * len(means)
        if total.requires_grad:
            slopes = torch.autograd.grad(total.sum(), means, allow_unused=True)
    moves = torch.zeros_like(forms)
    for slope, values in zip(slopes, each, strict=True):
        if slope is not None:
            moves += slope.nan_to_num(0).unsqueeze(-1) * (values - values.mean(-1, keepdim=True))
    return total.detach(), doubt.detach(), moves


def decay(K: BlockKrylov, forms: Tensor) -> Tensor:
    """Factor by which the truncation falls with each further step, as Aitken's rule sees it."""
    values, h = (
        [v.mean(-1) for v in _sequence(K, forms)],
        max(K.matrix.shape[-1] // forms.shape[-1] // FRACTIONS, 1),
    )
    if len(values) < 3:
        return torch.full_like(values[0], SLOWEST)
    last, before = values[1] - values[0], values[2] - values[1]
    ratio = (last / before).nan_to_num(nan=0.0).clamp(0.01, SLOWEST)
    return ratio ** (1 / h)


def _sequence(K: BlockKrylov, forms: Tensor) -> list[Tensor]:
    """Gauss values of each probe at equal distances, the last, `forms` (..., s), first."""
    s = forms.shape[-1]
    k, values = K.matrix.shape[-1] // s, [forms]
    h = max(k // FRACTIONS, 1)
    T = squared(K)
    for steps in [k - i * h for i in range(1, FRACTIONS) if k - i * h >= 1]:
        first = slice(0, steps * s)
        part = positive(T[..., first, first], K.kept[..., first])
        if K.squared and bool((part.nodes < RESOLVED * part.nodes.amax(-1, keepdim=True)).any()):
            part = _spectrum(K.matrix[..., first, first], K.kept[..., first], squared=True)
        values.append(part.forms(K.start))
    return values


def limit(values: list[Tensor], early: bool = False) -> tuple[Tensor, Tensor]:
    """Sum of the decreases still to come, from values at equal distances, the last first."""
    if len(values) < FRACTIONS:
        nothing = torch.zeros_like(values[0])
        return nothing, torch.full_like(nothing, torch.inf)
    last, before = values[1] - values[0], values[2] - values[1]
    rounding = 1e-12 * (values[0].abs() + 1)
    still = last > rounding
    r = torch.where(still, last / before.clamp_min(1e-300), 0)
    change = (r / before.clamp_min(0) * (values[3] - values[2])).nan_to_num(1).clamp_min(0)
    q = change.clamp_max(1)
    total, term, ratio = torch.zeros_like(r), last, r.clamp(max=SLOWEST)
    total = torch.where(q > 0.999, last * ratio / (1 - ratio), total)
    for _ in range(60):
        ratio = ratio * q
        term = term * ratio
        total = total + torch.where(q > 0.999, 0, term)
    slow = r >= SLOWEST
    total = torch.where(still & ~slow, total, 0)
    doubt = torch.maximum(
        (EARLY if early else DOUBT) * total, _algebraic_doubt(r, change) * last - total
    )
    return total, torch.where(still, doubt.masked_fill(slow, torch.inf), rounding)


def _algebraic_doubt(r: Tensor, change: Tensor) -> Tensor:
    """Sum of the decreases to come, in units of the last, if the error is a power of the steps.

    The error C kᵖ, p < 0, at 2, 3 and 4 quarters: their ratio r says p, by bisection. The ratio
    before that says whether to believe it: r / `change` would be that of the power or less, where r
    is that of an exponential; two thirds of the way there, nothing is left of the doubt.
    """
    low, high = torch.full_like(r, -64), torch.full_like(r, FLATTEST)
    for _ in range(40):
        p = (low + high) / 2
        steeper = (3**p - 4**p) / (2**p - 3**p) < r
        low, high = torch.where(steeper, p, low), torch.where(steeper, high, p)
    power = (2**low - 3**low) / (1 - 2**low)
    believed = (1 - 1.5 * (r / change - power) / (r - power)).clamp(0, 1).nan_to_num(0)
    left = (1 / (0.75**low - 1)).masked_fill(low > 1.001 * FLATTEST, torch.inf)
    return torch.where(believed > 0, believed * left, 0)
