r"""log det by Chebyshev expansions of random degree: no truncation bias at a finite expected cost.

.. math:: \hat p_N(x) = \sum_{j \le N} \frac{b_j}{P(N \ge j)} T_j(x), \qquad
          \mathbb{E}_N\, \hat p_N = \log

with b_j the Chebyshev series of log, known in closed form. Symmetry gives two moments a product,
so that degree N costs ⌈N/2⌉ products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from specbp import sensitivities
from specbp.degree_laws import DegreeLaw, log_rho
from specbp.differentiable import Sensitivity, attach
from specbp.estimate import Estimate, from_samples, untruncated
from specbp.operators import CountingOperator, as_operator, check_probes, check_square, product
from specbp.polynomials import growth_status


def randomised_chebyshev_logdet(
    A: Any, probes: Tensor, *, law: DegreeLaw, degrees: Tensor
) -> Estimate:
    r"""log det A without truncation bias: a Chebyshev expansion of random degree for each probe.

    .. math:: y_i = \sum_{j \le N_i} \frac{b_j}{P(N \ge j)}
                    \, x_i^\top T_j\!\Bigl(\frac{2A-(a+b)I}{b-a}\Bigr) x_i, \qquad
              \mathbb{E}\, y_i = \log\det A

    Unbiased over degrees and probes to rounding, and so is its derivative by `torch.autograd`, as
    long as [a, b] contains the spectrum. `lower` and `upper` bracket the mean of xᵢᵀ log(A) xᵢ by
    the plain series of degree Nᵢ, from the same moments; the value itself, which pays for its mean
    with variance, may lie outside. A wrong interval is reported as `OUTSIDE_INTERVAL` by any probe
    that runs long enough to grow.

    Args:
        A: Symmetric positive definite operator or tensor (..., n, n), float32 or float64.
        probes: (..., n, m), of A's dtype and device.
        law: The law that `degrees` were drawn from, with the interval [a, b].
        degrees: N of each probe, (..., m), int64, from `law.draw`.

    Cost: ⌈Nᵢ/2⌉ products for probe i, which leaves the block when it has finished. Replicates in
    dimensions that A does not have run as columns of one block, and `num_matvecs` is their mean;
    items of a batched A run in step, for as long as one of them needs.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes do not fit, or a degree is negative or impossible under the law.

    Source: Han, Avron & Shin (2018), arXiv:1802.06355.

    Example:
        >>> import torch
        >>> from specbp.degree_laws import degree_law
        >>> A = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
        >>> law = degree_law((0.9, 4.5), 10)
        >>> degrees = law.draw((500,), generator=torch.Generator().manual_seed(0))
        >>> X = torch.ones(3, 500, dtype=torch.float64)
        >>> est = randomised_chebyshev_logdet(A, X, law=law, degrees=degrees)
        >>> bool(abs(est.value - torch.logdet(A)) < 4 * est.standard_error)
        True
    """
    A = CountingOperator(as_operator(A))
    check_square(A)
    rows = check_probes(A, probes)
    law = law.to(rows.device)
    N = _degrees(law, degrees, rows)
    block = _Block(N, len(A.shape) - 2)
    with torch.no_grad():
        seen = _expand(A, block, rows, law)
    a, b = (block.spread(end) for end in law.interval)
    slack = _truncation(a, b, block.degrees) * seen.norm_squared
    amplified = (b + a) / (b - a)
    status = growth_status(seen.growth, seen.asymmetry, block.degrees, A.dtype, amplified)
    # Replicates that A does not tell apart were folded into one block.
    share = rows.shape[-2] / block.degrees.shape[-1]

    def derivative() -> Sensitivity:
        a, b = law.interval
        return sensitivities.chebyshev(A.operator, [rows], _taken(law, N), a, b)

    found = from_samples(
        attach(block.restored(seen.value), A, derivative),
        num_matvecs=A.num_matvecs * share,
        lower=block.restored(seen.plain - slack),
        upper=block.restored(seen.plain + slack),
        status=block.restored(status),
    )
    return untruncated(found)


class _Seen(NamedTuple):
    """Of every column, (..., M): both expansions, |x|², growth and asymmetry as in `Moments`."""

    value: Tensor
    plain: Tensor
    norm_squared: Tensor
    growth: Tensor
    asymmetry: Tensor


class _Block:
    """Order in which all probes become columns of one block, the longest runs first.

    Batch dimensions that A lacks go into the block: (*extra, *batch_of_A, m) -> (*batch_of_A, M).
    """

    def __init__(self, degrees: Tensor, kept: int):
        self.shape, self.extra = degrees.shape, degrees.ndim - 1 - kept
        folded = self._folded(degrees)
        self.order = folded.argsort(dim=-1, descending=True)
        self.degrees = folded.gather(-1, self.order)

    def active(self) -> list[int]:
        """Columns that step k = 1, 2, … multiplies: those that some item of the batch needs."""
        steps = ((self.degrees + 1) // 2).reshape(-1, self.degrees.shape[-1]).amax(0)
        finished = torch.bincount(steps).cumsum(0)[:-1]
        return (len(steps) - finished).tolist()

    def columns(self, rows: Tensor) -> Tensor:
        """Probes (..., m, n) as the rows of the block, (..., M, n)."""
        x = self._folded(rows)
        return x.gather(-2, self.order.unsqueeze(-1).expand_as(x))

    def spread(self, item: Tensor) -> Tensor:
        """A number for each item, (...), as one for each column; for a single number, itself."""
        if item.ndim == 0:
            return item
        return self._folded(item.unsqueeze(-1).expand(self.shape)).gather(-1, self.order)

    def restored(self, x: Tensor) -> Tensor:
        """Values of the columns (..., M) in the order and shape of the probes, (..., m)."""
        x = x.gather(-1, self.order.argsort(-1)).unflatten(-1, (-1, self.shape[-1]))
        return x.movedim(-2, 0).reshape(self.shape)

    def _folded(self, x: Tensor) -> Tensor:
        inner = x.ndim - len(self.shape)  # 1 for vectors
        x = x.reshape(-1, *x.shape[self.extra :]).movedim(0, -2 - inner)
        return x.flatten(-2 - inner, -1 - inner)


def _expand(A: CountingOperator, block: _Block, rows: Tensor, law: DegreeLaw) -> _Seen:
    """Run the recurrence, dropping columns as they finish."""
    active, x = block.active(), block.columns(rows)
    a, b = law.interval
    slope, offset = block.spread(2 / (b - a)), block.spread((b + a) / (b - a))
    total = torch.linalg.vecdot(x, x).double()
    sums, known, before, w = _Sums(law, block, total), [total], x, x
    growth, asymmetry = torch.ones_like(total), torch.zeros_like(total)
    for k, count in enumerate(active, 1):
        before, w = before[..., :count, :], w[..., :count, :]
        image = _first(slope, count, w) * product(A, w) - _first(offset, count, w) * w
        before, w = w, image if k == 1 else 2 * image - before
        odd, even = torch.linalg.vecdot(before, w).double(), torch.linalg.vecdot(w, w).double()
        if k > 1:
            odd = 2 * odd - known[1][..., :count]
        even = 2 * even - total[..., :count]
        known += [odd, even]
        sums.add(2 * k - 1, odd)
        sums.add(2 * k, even)
        with torch.no_grad():
            size = torch.where(torch.isfinite(even), even.abs(), 0) / total[..., :count]
            growth[..., :count] = torch.maximum(growth[..., :count], size)
            # Doubling had the moment of a column's last vector from symmetry: compare directly.
            left = active[k] if k < len(active) else 0
            last = torch.linalg.vecdot(x[..., left:count, :], w[..., left:, :])
            gap = (known[k][..., left:count] - last).abs() / total[..., left:count]
            asymmetry[..., left:count] = gap / growth[..., left:count]
    return _Seen(sums.weighted, sums.plain, total, growth, asymmetry)


class _Sums:
    """Σ_j b_j μ_j / P(N ≥ j) and Σ_j b_j μ_j over the moments that each column has, j ≤ N."""

    def __init__(self, law: DegreeLaw, block: _Block, total: Tensor):
        self.block, self.series, self.unbiased = block, law.coefficients, _unbiased(law)
        self.plain = self.weighted = block.spread(self.series[..., 0]) * total

    def add(self, j: int, moments: Tensor) -> None:
        """Add moment j of the first columns."""
        if j >= self.series.shape[-1]:
            return
        count = moments.shape[-1]
        taken = torch.where(self.block.degrees[..., :count] >= j, moments, 0)
        taken = torch.nn.functional.pad(taken, (0, self.plain.shape[-1] - count))
        self.plain = self.plain + self.block.spread(self.series[..., j]) * taken
        self.weighted = self.weighted + self.block.spread(self.unbiased[..., j]) * taken


def _taken(law: DegreeLaw, degrees: Tensor) -> Tensor:
    """Coefficients b_j / P(N ≥ j), j ≤ N, of every probe, (..., m, d + 1), d the largest degree."""
    unbiased = _unbiased(law)
    j = torch.arange(max(2, int(degrees.max()) + 1), device=unbiased.device)
    reached = unbiased[..., j.clamp_max(unbiased.shape[-1] - 1)].unsqueeze(-2)
    return torch.where(j <= degrees.unsqueeze(-1).to(j.device), reached, 0).detach()


def _unbiased(law: DegreeLaw) -> Tensor:
    """b_j / P(N ≥ j), zero beyond the reach of the law."""
    b, S = law.coefficients, law.probabilities
    return torch.where(S > 0, b / S, 0)


def _first(scalar: Tensor, count: int, like: Tensor) -> Tensor:
    """The numbers of the first columns, to multiply their vectors."""
    scalar = scalar.to(like)
    return scalar if scalar.ndim == 0 else scalar[..., :count].unsqueeze(-1)


def _degrees(law: DegreeLaw, degrees: Tensor, rows: Tensor) -> Tensor:
    """Checked degrees, one for each probe, (..., m)."""
    shape = rows.shape[:-1]
    if not isinstance(degrees, Tensor) or degrees.dtype != torch.int64:
        given = degrees.dtype if isinstance(degrees, Tensor) else type(degrees).__name__
        raise TypeError(f"degrees are an int64 tensor (..., m) from law.draw, got {given}.")
    try:
        N = degrees.to(rows.device).expand(shape)
        S = law.probabilities.expand(*shape[:-1], -1)
    except RuntimeError as error:
        raise ValueError(
            f"degrees {tuple(degrees.shape)} and the law's interval "
            f"{tuple(law.probabilities.shape[:-1])} must fit the probes' shape (..., m) = "
            f"{tuple(shape)}: draw them by law.draw({tuple(shape)}, generator=…)."
        ) from error
    possible = torch.logical_and(N >= 0, law.max_degree >= N)
    if bool(possible.all()):
        possible = S.gather(-1, N) > 0
    if not bool(possible.all()):
        raise ValueError(
            f"degrees lie in {int(N.min())} … {int(N.max())}, the law allows 0 … "
            f"{law.max_degree} (less for some items): draw them by law.draw."
        )
    return N


def _truncation(a: Tensor, b: Tensor, degree: Tensor) -> Tensor:
    """Bound of |series − log| on [a, b]."""
    decay = log_rho(a, b)
    return 2 * (-degree * decay).exp() / ((degree + 1) * decay.expm1())
