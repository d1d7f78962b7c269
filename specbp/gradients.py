r"""Log-determinants whose gradient is another estimator than that of their value.

The other estimators carry the derivative of what they compute (see `sensitivities`). Here stand the
paper's, which differentiates through the recurrence and keeps all of it, as a baseline; and those
that solve, d log det A = tr A⁻¹ dA.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from specbp import bounds, polynomials, quadrature
from specbp.differentiable import Sensitivity, attach, inputs_of
from specbp.estimate import Estimate, from_samples
from specbp.jacobian import Jacobian, JacobianMetric
from specbp.krylov import Tridiagonal, lanczos
from specbp.operators import (
    CountingOperator,
    Dense,
    as_operator,
    check_probes,
    check_square,
    check_steps,
)
from specbp.solvers import Solution, block_cg, cg


def backprop_logdet(
    A: Any,
    probes: Tensor,
    *,
    degree: int,
    interval: tuple[float | Tensor, float | Tensor],
    reuse: bool = True,
) -> Estimate:
    r"""log det A by Chebyshev expansion, differentiated by reverse mode through its recurrence.

    .. math:: x^\top p(A) x = \sum_{k=0}^d c_k\, x^\top w_k, \qquad
              w_{k+1} = 2 M w_k - w_{k-1}, \quad M = \frac{2A - (a+b) I}{b - a}

    The paper's own way, kept as the baseline that `chebyshev_logdet` is measured against: the same
    polynomial with the same gradient, but d products instead of ⌈d/2⌉, and every one of them keeps
    its activations until `backward`: memory grows with d m.

    Args:
        A: Symmetric positive definite tensor (..., n, n) or `JacobianMetric` of a `Jacobian`,
            float32 or float64; an operator whose `@` records a graph.
        probes: (..., n, m), of A's dtype and device.
        degree: Degree d ≥ 1; d products for each probe.
        interval: (a, b) with 0 < a ≤ λ_min and λ_max ≤ b, each (...).
        reuse: Of a `Jacobian`: share one evaluation of f, and of its adjoint, among all products, a
            stronger baseline than to differentiate f anew for each.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If degree < 1, the interval is empty or not positive, or shapes do not fit.

    A probe that grows beyond what [a, b] allows is reported as `OUTSIDE_INTERVAL`.

    Source: Ramesh & LeCun (2018), arXiv:1806.00499, Algorithm 1.
    """
    polynomials.check_degree(degree)
    counted = CountingOperator(as_operator(_recording(A, interval, reuse)))
    check_square(counted)
    x = check_probes(counted, probes)
    a, b = bounds.interval(*interval, x)
    c = polynomials.chebyshev_coefficients(degree, a, b).unsqueeze(-2)
    slope, offset = ((t.to(x)[..., None, None]) for t in (2 / (b - a), (b + a) / (b - a)))
    before, w = x, slope * (counted @ x.mT).mT - offset * x
    forms = [torch.linalg.vecdot(x, before), torch.linalg.vecdot(x, w)]
    for _ in range(1, degree):
        before, w = w, 2 * (slope * (counted @ w.mT).mT - offset * w) - before
        forms.append(torch.linalg.vecdot(x, w))
    moments = torch.stack(forms, -1).double()
    even = moments.detach()[..., ::2]
    status = polynomials.growth_status(
        even.abs().amax(-1) / even[..., 0],
        torch.zeros_like(even[..., 0]),  # without doubling nothing betrays asymmetry
        degree,
        x.dtype,
        ((b + a) / (b - a)).detach().unsqueeze(-1),
    )
    return from_samples((moments * c).sum(-1), num_matvecs=counted.num_matvecs, status=status)


def solve_logdet(
    A: Any,
    probes: Tensor,
    *,
    rtol: float = 1e-6,
    max_steps: int | None = None,
    num_steps: int | None = None,
) -> Estimate:
    r"""log det A with the gradient of one solve for each probe, by conjugate gradients.

    .. math:: d \log\det A = \mathbb{E}\, (A^{-1} x)^\top dA\, x, \qquad
              \log\det A = \mathbb{E}\, x^\top \log(A)\, x

    The gradient is unbiased up to `rtol`, whatever the spectrum, as long as rtol ≪ 1/√n (a single
    small eigenvalue hides below it otherwise), but noisier than Fréchet derivatives: entries of dA
    in the eigenbasis of A are weighted by the harmonic instead of the logarithmic mean of their
    eigenvalues.

    Without `num_steps` each probe has its own conjugate gradients, whose Lanczos coefficients give
    the value by Gauss quadrature from the same products. With it, the value is that of
    `slq_logdet`, and all probes are solved for in one block Krylov space, which takes far fewer
    products, and none where no gradient is wanted.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device.
        rtol: Relative residual |x − A y| / |x| at which a solve ends.
        max_steps: Most steps of a solve; as in `specbp.solvers`.
        num_steps: Lanczos steps of the value, see above.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If rtol, max_steps or num_steps are out of range, or shapes do not fit.

    A solve that ends before its tolerance makes the status `UNCONVERGED`: a warning.

    Source: Gardner, Pleiss, Bindel, Weinberger & Wilson (2018), arXiv:1809.11165; Caterini,
    Loaiza-Ganem, Pleiss & Cunningham (2021), arXiv:2106.01413.
    """
    A = CountingOperator(as_operator(A))
    n = check_square(A)
    rows = check_probes(A, probes)
    if num_steps is None:
        solved = cg(A, rows, rtol=rtol, max_steps=max_steps)
        T, status = _tridiagonal(solved, rows), solved.status
        rule = quadrature.gauss(T)
    else:
        check_steps(num_steps, n)
        T = lanczos(A, rows, num_steps)
        rule = quadrature.gauss(T)
        status = quadrature.krylov_status(T, rule, rows.dtype)
        if inputs_of(A):
            solved = block_cg(A, rows, rtol=rtol, max_steps=max_steps)
            status = status | solved.status
    values = attach(rule.value, A, lambda: _symmetric(solved.X, rows))
    return from_samples(values, num_matvecs=A.num_matvecs, status=status)


def _tridiagonal(solved: Solution, rows: Tensor) -> Tridiagonal:
    assert solved.diagonal is not None  # `cg` returns them
    assert solved.off_diagonal is not None
    # Rounding may take conjugate gradients further than n steps, where a rule gains nothing.
    n, steps = rows.shape[-1], solved.diagonal.shape[-1]
    missing = (0, 1 - min(steps, 1))  # probes that are all zero take no step
    return Tridiagonal(
        pad(solved.diagonal[..., :n], missing, value=1.0),
        pad(solved.off_diagonal[..., :n], missing),
        norm_squared=rows.double().square().sum(-1),
        closed=solved.converged,
        basis=rows.new_empty(0),
        asymmetry=torch.zeros_like(solved.residual),
    )


def _symmetric(y: Tensor, x: Tensor) -> Sensitivity:
    """½ (y xᵀ + x yᵀ) = ¼ (y/c + c x)(…)ᵀ − ¼ (y/c − c x)(…)ᵀ, c the balance of their lengths."""
    long_y, long_x = _length(y), _length(x)
    # A zero probe has a zero solution: any balance does.
    c = torch.where((long_y > 0) & (long_x > 0), (long_y / long_x).sqrt(), 1.0)
    ends = torch.stack([y / c + c * x, y / c - c * x], -2)
    weights = torch.tensor([0.25, -0.25], dtype=torch.float64, device=x.device)
    return Sensitivity(weights.expand(ends.shape[:-1]), ends, width=x.shape[-2])


def _length(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


def _recording(A: Any, interval: Iterable[float | Tensor], reuse: bool) -> Any:
    """The operator whose products keep their graph.

    Raises:
        TypeError: If products of A are detached, though it depends on tensors with a gradient.
    """
    inner = A
    while isinstance(inner, CountingOperator):
        inner = inner.operator
    wanted = inputs_of(A) or any(isinstance(e, Tensor) and e.requires_grad for e in interval)
    if isinstance(inner, JacobianMetric) and isinstance(inner.J, Jacobian) and wanted:
        return inner.J.recorded_metric(reuse=reuse)
    if not isinstance(inner, Tensor | Dense) and inputs_of(A):
        raise TypeError(
            "backprop_logdet differentiates an explicit tensor, or JacobianMetric of a Jacobian; "
            f"products of {type(A).__name__} keep no graph: use chebyshev_logdet."
        )
    return A
