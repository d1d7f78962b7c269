r"""log det from one Krylov space shared by all probes, each judged against that of the others.

The space W of all probes gives every quadratic form, and its upper bound, at the quality of s k
dimensions instead of k. The space of the *other* groups gives a matrix whose trace is known and
which is independent of the group's probes: a control variate that costs no product with A.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specbp import bounds
from specbp.block import BlockKrylov, block_golub_kahan, block_lanczos
from specbp.block_rules import (
    Spectrum,
    extrapolated,
    radau_forms,
    spectrum,
)
from specbp.cross_fitting import GROUPS, Fold, folds, sensitivity
from specbp.differentiable import attach
from specbp.estimate import FAILURES, Estimate, Status, from_samples
from specbp.operators import (
    CountingOperator,
    as_operator,
    check_probes,
    check_square,
    check_steps,
    check_tall,
)


def block_slq_logdet(
    A: Any,
    probes: Tensor,
    *,
    num_steps: int,
    lower: float | Tensor | None = None,
    groups: int = GROUPS,
    extrapolate: bool = True,
) -> Estimate:
    r"""log det A by block Lanczos quadrature with a cross-fitted control variate.

    With W the space of all probes, T = WᵀAW, and W_g, T_g those of all probes but the group of x_i,

    .. math:: \hat y_i = x_i^\top W \log(T) W^\top x_i
              + \operatorname{tr} L_g - x_i^\top L_g x_i, \qquad
              L_g = W_g \log(T_g) W_g^\top + c_g (I - W_g W_g^\top),

    where c_g is the mean of log over the rest of the spectrum as the other groups see it. L_g does
    not depend on x_i and its trace is known: for independent probes with E[x xᵀ] = I the estimate
    is unbiased but for truncation, which only the first term has, and always upwards. What is left
    of it is estimated from the values after k/4, k/2, 3k/4 and k steps and subtracted. Exact, and
    said so by a standard error of zero, when W fills the space: with s k ≥ n, unless the probes or
    an eigenvalue of higher multiplicity than s leave directions out.

    The values ŷ_i see each other's probes and are correlated: no unbiased standard error exists.
    Theirs is that of a mean of independent values times √(1 + (d/n) · s/(s − 2)), d the dimension
    of W: right where d/n is small, that of a second-order U-statistic where W nearly fills the
    space, and measured to be right or too large between, but for a low rank plus noise: where the
    spaces of the others hold all but the noise, terms of pairs of probes are left and it is small.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, s), of A's dtype and device, independent columns; s ≥ 3 for an error bar.
        num_steps: Block Lanczos steps k, 1 … n; min(k, ⌈n/s⌉) s products.
        lower: A lower bound of λ_min, (...), if one is known: the block Gauss–Radau rule then
            proves the lower end of the bracket.
        groups: Number of groups of probes, at least 2; more cost more and leave more to the
            control variate.
        extrapolate: Subtract the truncation estimated; if False, `truncation` says its size.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes, devices, num_steps or groups do not fit.

    Where A is differentiable, so is the value: by the Fréchet derivatives of these logarithms,
    `specbp.cross_fitting.sensitivity`. A failed item (negative Ritz value, NaN, asymmetry) is NaN
    with a status.

    Source: block quadrature: Golub & Meurant (2010); bounds and their average: Zimmerling, Druskin
    & Simoncini (2024), arXiv:2407.21505; leave-one-out: Epperly, Tropp & Webber (2024),
    arXiv:2301.07825; extrapolation: Aitken (1926). Their combination is ours.

    Example:
        >>> import torch
        >>> from specbp import generator_for, sphere
        >>> A = torch.diag(torch.linspace(1, 2, 40, dtype=torch.float64))
        >>> X = sphere(40, 5, generator=generator_for("doc"))
        >>> found = block_slq_logdet(A, X, num_steps=8)  # 5 · 8 products: all of A is known
        >>> abs(float(found.value - torch.logdet(A))) < 1e-10, float(found.standard_error)
        (True, 0.0)
    """
    A = CountingOperator(as_operator(A))
    check_steps(num_steps, check_square(A))
    rows = check_probes(A, probes)
    K = block_lanczos(A, rows, num_steps)
    return estimate(A, K, rows, A.num_matvecs, lower, groups, extrapolate)


def block_golub_kahan_logdet(
    J: Any,
    probes: Tensor,
    *,
    num_steps: int,
    lower: float | Tensor | None = None,
    groups: int = GROUPS,
    extrapolate: bool = True,
) -> Estimate:
    r"""log det JᵀJ by block Golub–Kahan quadrature with a cross-fitted control variate.

    .. math:: \hat y_i \text{ as in `block_slq_logdet`, with }
              \log(T) = 2 \log (B^\top B)^{1/2}, \qquad J W = U B

    Equal to `block_slq_logdet` on JᵀJ in exact arithmetic, half a block cheaper, and sound in
    float32 up to cond(JᵀJ) ≈ 1e8.

    Args:
        J: Operator or tensor (..., N, n), N ≥ n, with adjoint `.mT`, float32 or float64.
        probes: (..., n, s), of J's dtype and device, independent columns; s ≥ 3 for an error bar.
        num_steps: Steps k, 1 … n; min(k, ⌈n/s⌉) blocks of products with J and, unless `lower` is
            given, one fewer with Jᵀ.
        lower: A lower bound of λ_min(JᵀJ), (...), if one is known.
        groups: As in `block_slq_logdet`.
        extrapolate: As in `block_slq_logdet`.

    Raises:
        TypeError: If J has no adjoint or dtypes differ.
        ValueError: If J is wide, or shapes, devices, num_steps or groups do not fit.

    Source: as `block_slq_logdet`; Golub, Luk & Overton (1981), doi:10.1145/355945.355946.
    """
    J = as_operator(J)
    check_steps(num_steps, check_tall(J))
    J = CountingOperator(J)
    rows = check_probes(J, probes)
    K = block_golub_kahan(J, rows, num_steps, follow=lower is not None)
    return estimate(J, K, rows, J.num_gram_matvecs, lower, groups, extrapolate)


def estimate(
    operator: Any,
    K: BlockKrylov,
    rows: Tensor,
    num_matvecs: float,
    lower: float | Tensor | None = None,
    groups: int = GROUPS,
    extrapolate: bool = True,
) -> Estimate:
    """The estimate from a space that has been built from `rows` (..., s, n)."""
    s, n = rows.shape[-2:]
    if groups < 2:
        raise ValueError(f"The probes are split into at least 2 groups, got groups = {groups}.")
    found, status = _judged(K, rows.dtype)
    forms = found.forms(K.start)
    samples = forms + _control_variates(K, forms, groups, rows)
    bias, rest, moves = extrapolated(K, forms)
    gap = None if lower is None else (forms - _radau(K, lower, rows)).clamp_min(0)
    if gap is not None:
        moves = moves * (bias <= gap.mean(-1)).unsqueeze(-1)
        bias = torch.minimum(bias, gap.mean(-1))  # no more than is proven possible
    shift = (bias.unsqueeze(-1) + moves) * extrapolate
    full = K.rank == n
    value = torch.where(full.unsqueeze(-1), found.trace().unsqueeze(-1), samples)
    # The gradient is one of all probes together: every sample brings it to their mean.
    carrier = attach(
        torch.zeros_like(bias).unsqueeze(-1),
        operator,
        lambda: sensitivity(K, groups, rows),
        factor=K.squared,
    )
    result = from_samples(
        value - shift.masked_fill(full.unsqueeze(-1), 0) + carrier,
        num_matvecs=num_matvecs,
        lower=None if gap is None else value - gap,
        upper=value,
        status=(status | full * int(Status.INVARIANT_SUBSPACE)).unsqueeze(-1).expand(forms.shape),
    )
    return replace(
        result,
        standard_error=_inflated(result.standard_error, K, s).masked_fill(full & result.ok, 0),
        lower=torch.where(full & result.ok, result.value.detach(), result.lower),
        truncation=(rest if extrapolate else rest + bias).masked_fill(full, 0),
        freedom=((s - 1) / (1 + K.rank.double() / n)).clamp_min(1),
    )


def _judged(K: BlockKrylov, dtype: torch.dtype) -> tuple[Spectrum, Tensor]:
    """Nodes of T with failed items replaced by the identity, and flags of every item."""
    eps = torch.finfo(dtype).eps
    finite = torch.isfinite(K.matrix).all(-1).all(-1)
    found = spectrum(K)
    largest = torch.where(found.kept, found.nodes, 0).amax(-1)
    smallest = torch.where(found.kept, found.nodes, torch.inf).amin(-1)
    floor = ((4 * eps) ** 2 if K.squared else 4 * eps) * largest
    status = (
        ~finite * int(Status.NONFINITE)
        | (smallest < -floor) * int(Status.NEGATIVE_RITZ)
        | (smallest.abs() <= floor) * int(Status.SINGULAR)
        | (K.asymmetry > eps**0.5) * int(Status.NONSYMMETRIC)
    )
    sound = ((status & int(FAILURES | Status.SINGULAR)) == 0)[..., None, None]
    identity = torch.eye(K.matrix.shape[-1], dtype=torch.float64, device=K.matrix.device)
    K.matrix.copy_(torch.where(sound, K.matrix, identity))
    K.start.copy_(torch.where(sound, K.start, 0))
    return spectrum(K) if not bool(sound.all()) else found, status


def _control_variates(K: BlockKrylov, forms: Tensor, groups: int, rows: Tensor) -> Tensor:
    """tr L_g − x_iᵀ L_g x_i for every probe, (..., s), g its group."""
    terms = torch.zeros_like(forms)
    for fold in folds(K, groups, rows):
        terms[..., fold.parts.flatten()] = _control_variate(fold, rows.shape[-1]).flatten(-2)
    return terms


def _control_variate(fold: Fold, n: int) -> Tensor:
    """tr L_g − x_iᵀ L_g x_i for the probes of equally large groups, (..., G, size)."""
    # A function of the others' data with a known trace: any will do, and so will this floor.
    known, own, seen = fold.spectrum(), fold.inside(fold.parts), fold.inside(fold.others)
    trace, left = known.trace(), n - fold.space.rank
    # The others lie within their space: their mean form estimates tr log A independently of x_i.
    level = (known.forms(seen).mean(-1) - trace) / left.clamp_min(1) * (left > 0)
    rest = fold.coordinates[..., fold.parts, :].square().sum(-1) - own.square().sum(-1)
    inside = trace.unsqueeze(-1) - known.forms(own)
    return inside + level.unsqueeze(-1) * (left.unsqueeze(-1) - rest)


def _radau(K: BlockKrylov, lower: float | Tensor, rows: Tensor) -> Tensor:
    return radau_forms(K, bounds.positive(lower, "lower", rows))


def _inflated(standard_error: Tensor, K: BlockKrylov, s: int) -> Tensor:
    if s < 3:
        return torch.full_like(standard_error, torch.nan)
    return standard_error * (1 + K.rank.double() / K.basis.shape[-1] * s / (s - 2)) ** 0.5
