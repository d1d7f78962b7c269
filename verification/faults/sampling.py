"""Faults of the sampler: another law, dependence, and seeds that return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from specbp import generator_for, probes
from verification.faults.controls import CHEBYSHEV, GAUSSIAN
from verification.faults.fault import Fault, plant

PERIOD = 5


def sampler(draw: Callable[[int, int, torch.Generator, Sequence[int]], Tensor]) -> Any:
    """A probe law (`specbp.probes.Sampler`) from (n, m, generator, batch_shape) -> probes."""

    def sample(
        n: int,
        m: int,
        *,
        generator: torch.Generator,
        batch_shape: Sequence[int] = (),
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        return draw(n, m, generator, batch_shape).to(dtype=dtype, device=device)

    return sample


def _signs(n: int, m: int, generator: torch.Generator, batch: Sequence[int] = ()) -> Tensor:
    return probes.rademacher(n, m, generator=generator, batch_shape=batch)


def shared(n: int, m: int, generator: torch.Generator, batch: Sequence[int]) -> Tensor:
    """One block for all items of the batch."""
    return _signs(n, m, generator).expand(*batch, n, m)


def periodic(n: int, m: int, generator: torch.Generator, batch: Sequence[int]) -> Tensor:
    """One of five blocks for every item."""
    seeds = torch.randint(PERIOD, tuple(batch), generator=generator).flatten().tolist()
    drawn = [_signs(n, m, generator_for("period", seed)) for seed in seeds]
    return torch.stack(drawn).view(*batch, n, m)


def frozen(n: int, m: int, _generator: torch.Generator, batch: Sequence[int]) -> Tensor:
    """The same block for ever, whatever the generator."""
    return _signs(n, m, generator_for("frozen")).expand(*batch, n, m)


def antithetic(n: int, m: int, generator: torch.Generator, batch: Sequence[int]) -> Tensor:
    """x and −x, which give the same value, counted as two probes."""
    half = _signs(n, (m + 1) // 2, generator, batch)
    return torch.cat([half, -half], -1)[..., :m]


def biased_coin(n: int, m: int, generator: torch.Generator, batch: Sequence[int]) -> Tensor:
    """Signs that are +1 with probability 0.51."""
    uniform = torch.rand((*batch, n, m), generator=generator, dtype=torch.float64)
    return (2 * (uniform < 0.51) - 1).double()


def preconditioned(n: int, m: int, generator: torch.Generator, batch: Sequence[int]) -> Tensor:
    """N(0, P) with a diagonal P, used as if it were N(0, I)."""
    X = probes.gaussian(n, m, generator=generator, batch_shape=batch)
    return X * torch.linspace(1, 2, n, dtype=torch.float64).sqrt().unsqueeze(-1)


FAULTS: tuple[Fault, ...] = (
    plant(
        CHEBYSHEV,
        "f1",
        "normal probes for signs",
        "P1 S2 S3",
        sampler=probes.gaussian,
    ),
    plant(
        CHEBYSHEV,
        "f5",
        "probes shared between the items of a batch",
        "P2 S5",
        sampler=sampler(shared),
    ),
    plant(
        CHEBYSHEV,
        "f10",
        "seeds that return with period five",
        "P2 P3 S5",
        sampler=sampler(periodic),
    ),
    plant(
        CHEBYSHEV,
        "f11",
        "x and −x counted as two probes",
        "P2 S2 S3",
        sampler=sampler(antithetic),
    ),
    plant(
        CHEBYSHEV,
        "f12",
        "coin with probability 0.51",
        "P1",
        equivalent="S: the mean moves by far less than its standard deviation.",
        sampler=sampler(biased_coin),
    ),
    plant(
        CHEBYSHEV,
        "f21",
        "sphere for signs",
        "P1",
        equivalent="S: the means are equal, and so nearly are the variances.",
        sampler=probes.sphere,
    ),
    plant(
        CHEBYSHEV,
        "frozen-probes",
        "the same probes for ever",
        "P2 P3 S5",
        source="CoLA, default key of the torch backend",
        sampler=sampler(frozen),
    ),
    plant(
        GAUSSIAN,
        "preconditioned-probes",
        "probes of covariance P counted as isotropic",
        "P1 S1 S3",
        source="GPyTorch #634, probes under a preconditioner",
        sampler=sampler(preconditioned),
    ),
)
