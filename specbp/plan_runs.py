"""Estimates that go on: more steps of the same probes, more probes, and what both show together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specbp import block_rules, blockquad, quadrature, sensitivities
from specbp.block import block_golub_kahan, block_lanczos
from specbp.differentiable import attach
from specbp.estimate import Estimate, from_samples
from specbp.krylov import Bidiagonal, Tridiagonal, golub_kahan, lanczos
from specbp.operators import CountingOperator

EARLY_STEPS = 8 * block_rules.FRACTIONS  # fewer of one probe alone show no trend
KNOWN = 1e8  # degrees of freedom from which a variance counts as known


class Found(NamedTuple):
    """An estimate and what it shows of larger ones, each (...).

    Attributes:
        estimate: With `truncation`.
        rate: Factor by which the truncation falls with each further step.
        size: Σ|log λ_i| as the probes see it.
    """

    estimate: Estimate
    rate: Tensor
    size: Tensor


class Replay:
    """An operator that answers again what it was asked before: its products are paid for once.

    A Krylov space built anew with more steps asks for the same products first. They are the same to
    rounding; where they are not, as after a rank decision that rounding turned, the operator
    multiplies.
    """

    def __init__(self, operator: Any):
        self.operator = operator
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.position = 0
        self._adjoint: Replay | None = None

    shape = property(lambda self: self.operator.shape)
    dtype = property(lambda self: self.operator.dtype)
    device = property(lambda self: self.operator.device)

    @property
    def mT(self) -> Replay:
        """The adjoint, which replays too."""
        if self._adjoint is None:
            self._adjoint = Replay(self.operator.mT)
        return self._adjoint

    def rewind(self) -> None:
        """Begin anew."""
        self.position = 0
        if self._adjoint is not None:
            self._adjoint.rewind()

    def forget(self) -> None:
        """Free the memory."""
        self.seen = []
        if self._adjoint is not None:
            self._adjoint.forget()

    def __matmul__(self, X: Tensor) -> Tensor:
        known = self.seen[self.position : self.position + 1]
        if not known or not _same(known[0][0], X):
            del self.seen[self.position :]
            self.seen.append((X, self.operator @ X))
        self.position += 1
        return self.seen[self.position - 1][1]


def _same(X: Tensor, Y: Tensor) -> bool:
    if X.shape != Y.shape:
        return False
    return bool((X - Y).abs().amax() <= 64 * torch.finfo(X.dtype).eps * Y.abs().amax())


class Batch:
    """Probes (b, ..., s, n) of one draw: b blocks that share spaces, or s probes that do not."""

    def __init__(self, operator: Any, rows: Tensor, *, factor: bool, shared: bool, keep: bool):
        self.rows, self.factor, self.shared, self.keep = rows, factor, shared, keep
        self.counted = CountingOperator(operator)
        self.replay = Replay(self.counted)

    @property
    def products(self) -> float:
        """Products with A so far, of all blocks."""
        counted = self.counted
        return len(self.rows) * (counted.num_gram_matvecs if self.factor else counted.num_matvecs)

    def run(self, num_steps: int) -> Found:
        """What these probes give with `num_steps`, one estimate for each block: (b, ...)."""
        self.replay.rewind()
        found = self._in_shared(num_steps) if self.shared else self._in_own(num_steps)
        if not self.keep:
            self.replay.forget()
        return found

    def _in_shared(self, num_steps: int) -> Found:
        run: Any = block_golub_kahan if self.factor else block_lanczos
        K = run(self.replay, self.rows, num_steps)
        found = blockquad.estimate(self.counted, K, self.rows, self.products)
        known, s = block_rules.spectrum(K), self.rows.shape[-2]
        weights = (K.start @ known.vectors[..., :s, :]).square().sum(-2) / s
        size = (weights * known.nodes.log().abs()).nan_to_num(0).sum(-1)
        return Found(found, block_rules.decay(K, known.forms(K.start)), size)

    def _in_own(self, num_steps: int) -> Found:
        run: Any = golub_kahan if self.factor else lanczos
        T = run(self.replay, self.rows, num_steps)
        found = independent(T, self.rows.shape[-1], self.rows.dtype)
        samples = attach(
            found.estimate.samples,
            self.counted,
            lambda: sensitivities.frechet(T),
            factor=self.factor,
        )
        return found._replace(estimate=replace(found.estimate, samples=samples))


def independent(T: Tridiagonal | Bidiagonal, n: int, dtype: torch.dtype) -> Found:
    r"""The mean Gauss value of probes from the sphere, its truncation extrapolated.

    .. math:: \mathrm{se}^2 = \frac{2n}{n + 2} \cdot \frac1m \Bigl(\|B\|_F^2
              - \frac{(\operatorname{tr} B)^2}{n}\Bigr), \qquad B = \log A

    Both terms are traces and known from the same Gauss rules, mostly to a relative accuracy that
    the spread of a few values would not reach. They are means over probes all the same, and small
    when the value is, where a few eigenvalues carry B: with C = B less its mean,

    .. math:: \nu = m \frac{(\operatorname{tr} C^2)^2}{\operatorname{tr} C^4}

    degrees of freedom say so (Satterthwaite 1946, doi:10.2307/3002019).
    """
    nodes, weights = _nodes(T)
    logs = torch.where(weights == 0, 0, nodes.log())
    values = (weights * logs).sum(-1)
    squares, size = (weights * logs**2).sum(-1).mean(-1), (weights * logs.abs()).sum(-1).mean(-1)
    bias, doubt, rate = _extrapolated(T, values.mean(-1))
    centred = logs - (values.mean(-1) / n)[..., None, None]
    second, fourth = ((weights * centred**p).sum(-1).mean(-1) for p in (2, 4))
    freedom = values.shape[-1] * second**2 / fourth.clamp_min(torch.finfo(fourth.dtype).tiny)
    rule = quadrature.Rule(values, nodes.amin(-1), nodes.amax(-1))
    status = quadrature.krylov_status(T, rule, dtype)
    found = from_samples(values - bias.unsqueeze(-1), num_matvecs=0, upper=values, status=status)
    variance = 2 * n / (n + 2) * (squares - values.mean(-1) ** 2 / n).clamp_min(0)
    error = (
        (variance / values.shape[-1]).sqrt().masked_fill(~torch.isfinite(found.value), torch.nan)
    )
    return Found(
        replace(found, standard_error=error, truncation=doubt, freedom=_bounded(freedom)),
        rate,
        size.nan_to_num(0),
    )


def _nodes(T: Tridiagonal | Bidiagonal) -> tuple[Tensor, Tensor]:
    """Nodes and weights (..., m, k) of the Gauss rules; NaN where T is not finite."""
    nodes, vectors = quadrature.ritz(T)
    return nodes, T.norm_squared.unsqueeze(-1) * vectors[..., 0, :] ** 2


def _extrapolated(T: Tridiagonal | Bidiagonal, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Truncation of the mean Gauss value, the doubt in it, and its decay with a step."""
    k = T.diagonal.shape[-1]
    h = max(k // block_rules.FRACTIONS, 1)
    values = [last] + [
        quadrature.gauss(quadrature.leading(T, k - i * h)).value.mean(-1)
        for i in range(1, block_rules.FRACTIONS)
        if k - i * h >= 1
    ]
    bias, doubt = block_rules.limit(values)
    # Spaces of one probe each converge in stages, unlike a shared one: all that is extrapolated is
    # in doubt, and several times that before the stages can be seen.
    early = k < EARLY_STEPS
    doubt = torch.maximum(doubt, block_rules.EARLY * bias if early else bias)
    if len(values) < 3:
        return bias, doubt, torch.full_like(bias, block_rules.SLOWEST)
    ratio = ((values[1] - values[0]) / (values[2] - values[1])).nan_to_num(nan=0.0)
    return bias, doubt, ratio.clamp(0.01, block_rules.SLOWEST) ** (1 / h)


def _bounded(freedom: Tensor) -> Tensor:
    return freedom.nan_to_num(nan=1.0).clamp(1, KNOWN)


def pooled(parts: list[Found], num_matvecs: float) -> Found:
    """The mean of independent estimates (b, ...) over all their probes, (...)."""
    sizes = [part.estimate.samples.shape[-1] for part in parts]

    def mean(values: list[Tensor]) -> Tensor:
        total = sum(s * x.sum(0) for s, x in zip(sizes, values, strict=True))
        return torch.as_tensor(total) / m

    estimates = [part.estimate for part in parts]
    m = sum(s * len(e.value) for s, e in zip(sizes, estimates, strict=True))
    merged = from_samples(
        torch.cat([_flat(e.samples) for e in estimates], -1),
        num_matvecs=num_matvecs,
        status=torch.cat(
            [_flat(e.status.unsqueeze(-1).expand_as(e.samples)) for e in estimates], -1
        ),
    )
    variance = sum(
        (s * e.standard_error).square().sum(0) for s, e in zip(sizes, estimates, strict=True)
    )
    freedom = [
        len(e.value) * float(torch.as_tensor(s - 1.0 if e.freedom is None else e.freedom).min())
        for s, e in zip(sizes, estimates, strict=True)
    ]
    found = replace(
        merged,
        standard_error=torch.as_tensor(variance).sqrt() / m,
        lower=mean([e.lower for e in estimates]),
        upper=mean([e.upper for e in estimates]),
        truncation=mean([e.truncation for e in estimates if e.truncation is not None]),
        freedom=float(min(sum(freedom), KNOWN)),
    )
    rate = torch.cat([part.rate for part in parts]).amax(0)
    return Found(found, rate, mean([part.size for part in parts]))


def _flat(samples: Tensor) -> Tensor:
    """(b, ..., s) -> (..., b s)."""
    return samples.movedim(0, -2).flatten(-2)
