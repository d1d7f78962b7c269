r"""Laws of a random expansion degree, and the variance that they cost.

.. math:: \hat p_N(x) = \sum_{j \le N} \frac{b_j}{P(N \ge j)} T_j(x), \qquad
          \mathbb{E}_N\, \hat p_N = \log
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from specbp.bounds import Interval
from specbp.polynomials import chebyshev_series

Kind = Literal["log", "products", "geometric"]
RESOLUTION = 2.0**-53  # of the uniform numbers that `DegreeLaw.draw` inverts


@dataclass(frozen=True, eq=False)
class DegreeLaw:
    r"""Law of the random degree N, by its survival function; made by `degree_law`.

    Survival probabilities are multiples of 2⁻⁵³, as are the uniform numbers that `draw` inverts:
    P(N ≥ j) is exact, and N never exceeds `max_degree`, the last j with P(N ≥ j) > 0. What lies
    beyond is missing from the mean, at most 2 ρ^{-J} / ((J+1)(ρ−1)) at J = `max_degree` for each
    eigenvalue: the rounding of the terms before it.

    Attributes:
        interval: [a, b], each (...).
        probabilities: P(N ≥ j) for j = 0 … max_degree, (..., max_degree + 1), float64.
    """

    interval: Interval
    probabilities: Tensor

    @property
    def max_degree(self) -> int:
        """Largest degree that is ever drawn, for any item of the batch."""
        return self.probabilities.shape[-1] - 1

    @property
    def mean_degree(self) -> Tensor:
        """E N = Σ_{j ≥ 1} P(N ≥ j), (...)."""
        return self.probabilities[..., 1:].sum(-1)

    @property
    def mean_products(self) -> Tensor:
        """E ⌈N/2⌉ = Σ_k P(N ≥ 2k − 1), the expected products of a probe, (...)."""
        return self.probabilities[..., 1::2].sum(-1)

    @property
    def coefficients(self) -> Tensor:
        """Chebyshev series b_0 … b_J of log on the interval, (..., J + 1)."""
        return chebyshev_series(self.max_degree, *self.interval)

    def to(self, device: torch.device | str) -> DegreeLaw:
        """The same law with its tensors on a device."""
        a, b = (end.to(device) for end in self.interval)
        return DegreeLaw(Interval(a, b), self.probabilities.to(device))

    def survival(self, j: int | Tensor) -> Tensor:
        """P(N ≥ j), (...) for an integer j; for a vector of k integers (..., k)."""
        j = torch.as_tensor(j, device=self.probabilities.device)
        inside = self.probabilities[..., j.clamp(0, self.max_degree)]
        return torch.where(j > self.max_degree, 0, inside)

    def draw(self, shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
        """Independent degrees, int64 of shape (..., m), drawn on the CPU.

        Args:
            shape: (..., m); its batch must be one to which the law's batch expands.
            generator: The only source of randomness.
        """
        u = torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
        u = u.to(self.probabilities.device)
        table = -self.probabilities[..., 1:]
        if table.ndim > 1:
            table = table.expand(*u.shape[:-1], -1).contiguous()
        return torch.searchsorted(table, -u)


def degree_law(
    interval: tuple[float | Tensor, float | Tensor],
    mean_degree: float,
    kind: Kind = "log",
) -> DegreeLaw:
    r"""The law of least Chebyshev-weighted variance among those of one mean.

    .. math:: P(N \ge j) = \min(1, C t_j), \qquad
              \sum_{j \ge 1} \frac{b_j^2}{P(N \ge j)} \to \min
              \;\text{ at }\; t_j \propto |b_j|

    "log": t_j = ρ^{-j} / j, the coefficients of log themselves. "products": the same optimum when
    cost is counted in products, ⌈N/2⌉; degrees are even, and t of the pair (2k − 1, 2k) is
    √(b²_{2k−1} + b²_{2k}). "geometric": t_j = ρ^{-j}, the law of the paper, which knows of the
    function only that it is analytic.

    C follows from the mean in closed form: with K the largest degree that is always reached, C is
    (mean − K) / Σ_{j > K} t_j.

    Args:
        interval: (a, b) with 0 < a < b, each (...).
        mean_degree: E N > 0, of every item.
        kind: As above.

    Raises:
        ValueError: If the interval is empty or not positive, mean_degree is not positive or kind is
            unknown.

    Source: Han, Avron & Shin (2018), arXiv:1802.06355, for "geometric"; "log" and "products" by
    the same Lagrangian with the coefficients of log.

    Example:
        >>> law = degree_law((1.0, 100.0), 40)
        >>> round(float(law.mean_degree), 9), float(law.survival(1))
        (40.0, 1.0)
    """
    if kind not in get_args(Kind):
        raise ValueError(f'kind is "log", "products" or "geometric", got {kind!r}.')
    if not (mean_degree > 0 and math.isfinite(mean_degree)):
        raise ValueError(f"mean_degree must be positive and finite, got {mean_degree}.")
    a, b = (torch.as_tensor(end, dtype=torch.float64) for end in interval)
    a, b = torch.broadcast_tensors(a, b)
    if not bool(((a > 0) & (a < b) & torch.isfinite(b)).all()):
        raise ValueError(f"A spectral interval needs 0 < a < b < inf, got {interval}.")
    per_step = 2 if kind == "products" else 1
    decay = per_step * log_rho(a, b).unsqueeze(-1)
    # Beyond the mean the law decays by ρ a step: 60 octaves reach below the resolution.
    steps = math.ceil(mean_degree / per_step + 60 * math.log(2) / float(decay.min())) + 2
    k = torch.arange(1, steps + 1, dtype=torch.float64, device=a.device)
    log_t = -k * decay
    if kind == "log":
        log_t = log_t - k.log()
    elif kind == "products":
        # ρ^{-2k} √((ρ / (2k−1))² + 1 / (2k)²)
        log_t = log_t + ((decay / 2).exp() / (2 * k - 1)).hypot(1 / (2 * k)).log()
    survival = _solved(log_t, mean_degree / per_step).repeat_interleave(per_step, -1)
    survival = torch.cat([torch.ones_like(survival[..., :1]), survival], -1)
    survival = torch.floor(survival / RESOLUTION) * RESOLUTION
    used = int((survival > 0).sum(-1).max())
    return DegreeLaw(Interval(a, b), survival[..., :used])


def _solved(log_t: Tensor, mean: float) -> Tensor:
    """min(1, C t_k) for k = 1 … of the given mean, t decreasing."""
    # tail[K] = log Σ_{k > K} t_k; a law with t_K = 1 just reached has mean K + Σ_{k > K} t_k / t_K.
    tail = log_t.flip(-1).logcumsumexp(-1).flip(-1)
    K = torch.arange(1, log_t.shape[-1], dtype=log_t.dtype, device=log_t.device)
    reached = K + (tail[..., 1:] - log_t[..., :-1]).exp()
    full = (reached <= mean).sum(-1, keepdim=True)
    log_c = (mean - full.double()).log() - tail.gather(-1, full)
    survival = (log_c + log_t).clamp(max=0).exp()
    always = torch.arange(log_t.shape[-1], device=log_t.device) < full
    return torch.where(always, 1, survival)


def degree_variance(law: DegreeLaw, moments: Tensor) -> Tensor:
    r"""Variance over N of one probe's estimate, given its moments μ_j = xᵀ T_j x, (...).

    .. math:: \operatorname{Var}_N \sum_{j \le N} \frac{b_j \mu_j}{S_j}
              = \sum_{j \ge 1} \Bigl(\frac1{S_j} - \frac1{S_{j-1}}\Bigr) R_j^2, \qquad
              R_j = \sum_{l \ge j} b_l \mu_l

    with S_j = P(N ≥ j): every truncation error R_j of the plain series counts as often as the law
    makes it rare. With μ_j = T_j(λ) it is the variance of p̂_N at the point λ.

    Args:
        law: A law of max_degree J.
        moments: μ_0 … μ_J, (..., J + 1), float64.
    """
    tails = (law.coefficients * moments).flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return (_rarity(law) * tails.square()).sum(-1)


def spectral_degree_variance(law: DegreeLaw, eigenvalues: Tensor) -> Tensor:
    r"""Variance that the random degree adds to one Gaussian probe, for a given spectrum, (...).

    .. math:: \mathbb{E}_x \operatorname{Var}_N
              = \sum_{j \ge 1} \Bigl(\frac1{S_j} - \frac1{S_{j-1}}\Bigr)
                \Bigl[ \bigl(\textstyle\sum_i r_j(\lambda_i)\bigr)^2
                + 2 \textstyle\sum_i r_j(\lambda_i)^2 \Bigr], \qquad
              r_j = \sum_{l \ge j} b_l T_l

    The variance of xᵀ log(A) x over probes comes on top. For Rademacher probes it is an upper
    bound.

    Args:
        law: A law of max_degree J.
        eigenvalues: (..., n) inside the interval, float64.
    """
    a, b = (end.unsqueeze(-1) for end in law.interval)
    angle = ((2 * eigenvalues - (a + b)) / (b - a)).clamp(-1, 1).acos().unsqueeze(-1)
    basis = torch.cos(angle * torch.arange(law.max_degree + 1, device=angle.device))
    tails = (law.coefficients.unsqueeze(-2) * basis).flip(-1).cumsum(-1).flip(-1)[..., 1:]
    second = tails.sum(-2).square() + 2 * tails.square().sum(-2)
    return (_rarity(law) * second).sum(-1)


def weighted_variance(law: DegreeLaw) -> Tensor:
    r"""Variance of p̂_N integrated with the Chebyshev weight, what `degree_law` minimises, (...).

    .. math:: \int_{-1}^1 \frac{\operatorname{Var} \hat p_N(t)}{\sqrt{1 - t^2}} \, dt
              = \frac\pi2 \sum_{j \ge 1} b_j^2 \Bigl(\frac1{S_j} - 1\Bigr)
    """
    S, b = law.probabilities[..., 1:], law.coefficients[..., 1:]
    return math.pi / 2 * torch.where(S > 0, b**2 * (1 / S - 1), 0).sum(-1)


def _rarity(law: DegreeLaw) -> Tensor:
    """1 / S_j − 1 / S_{j−1} for j = 1 … J; zero where the law of an item has ended."""
    S = law.probabilities
    return torch.where(S[..., 1:] > 0, 1 / S[..., 1:] - 1 / S[..., :-1], 0)


def log_rho(lower: Tensor, upper: Tensor) -> Tensor:
    """log ρ of the ellipse through zero, ρ = (√b + √a) / (√b − √a), without cancellation."""
    return 2 * (lower / upper).sqrt().atanh()
