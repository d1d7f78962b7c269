"""One RealNVP on pictures of digits, trained by maximum likelihood or by a Wasserstein critic.

The data are scikit-learn's 8x8 digits with the grey values 0 … 16, made continuous by uniform noise
(Theis, van den Oord & Bethge, 2016, arXiv:1511.01844): x = (value + u) / 17 in [0, 1]^64. Densities
of x become bits per dimension of the grey values,

    bits/dim = -log2 p(x) / 64 + log2 17,

so that the uniform density on [0, 1]^64 has log2 17 = 4.09, and what a model reaches bounds the
discrete log-likelihood from above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from specbp import generator_for
from specbp.models import Composition, Flow, RealNVP

DIM, SIDE, LEVELS = 64, 8, 17
NUM_TRAIN = 1500  # of 1797; the others are held out
UNIFORM_BITS = math.log2(LEVELS)
MARGIN = 0.05  # of the logit: black and white lie at a finite distance
CLIP = 100.0  # norm of the gradient of the likelihood, which couplings make spiky


@dataclass(frozen=True)
class Settings:
    """What determines a run.

    Attributes:
        seed: Part of the key of every generator.
        mle_steps: Updates of the generator by maximum likelihood.
        wgan_steps: Updates of the generator against the critic.
        layers: Couplings.
        hidden: Width of their networks.
        batch_size: Digits of one update.
        mle_rate: Learning rate of Adam, maximum likelihood.
        wgan_rate: Learning rate of the generator against the critic.
        critic_rate: Learning rate of the critic.
        critic_steps: Updates of the critic for one of the generator.
        critic_width: Width of its two hidden layers.
        penalty: Weight of the critic's gradient penalty.
        points: Held-out digits, and samples, at which log-determinants are estimated.
        probes: Probes of one estimate.
    """

    seed: int = 0
    mle_steps: int = 2000
    wgan_steps: int = 2000
    layers: int = 8
    hidden: int = 64
    batch_size: int = 128
    mle_rate: float = 1e-3
    wgan_rate: float = 5e-4
    critic_rate: float = 1e-3
    critic_steps: int = 5
    critic_width: int = 256
    penalty: float = 10.0
    points: int = 24
    probes: int = 8

    def steps(self, objective: str) -> int:
        """Updates of the generator under an objective."""
        return {"mle": self.mle_steps, "wgan": self.wgan_steps}[objective]


@lru_cache(maxsize=1)
def _digits() -> Tensor:
    return torch.from_numpy(load_digits().data).float()


def dequantised(values: Tensor, generator: torch.Generator) -> Tensor:
    """Grey values 0 … 16 with uniform noise, in [0, 1]."""
    noise = torch.rand(values.shape, generator=generator, dtype=values.dtype)
    return (values + noise) / LEVELS


def held_out() -> Tensor:
    """The digits that nothing is trained on, dequantised once: (297, 64)."""
    return dequantised(_digits()[NUM_TRAIN:], generator_for("realnvp", "held out"))


def trained_on() -> Tensor:
    """As many of the digits for training, dequantised once."""
    count = len(_digits()) - NUM_TRAIN
    return dequantised(_digits()[:count], generator_for("realnvp", "trained on"))


class ToPixels(Flow):
    r"""Logistic function per pixel, the inverse of the logit transform of RealNVP's section 4.1.

    .. math:: x = \frac{\sigma(h) - \lambda}{1 - 2 \lambda}, \qquad
              \log\frac{dx}{dh} = \log\sigma(h) + \log\sigma(-h) - \log(1 - 2 \lambda)
    """

    def _transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return (z.sigmoid() - MARGIN) / (1 - 2 * MARGIN), self._log_det(z)

    def _invert(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.logit(MARGIN + (1 - 2 * MARGIN) * x)
        return h, self._log_det(h)

    def _log_det(self, h: Tensor) -> Tensor:
        slopes = F.logsigmoid(h) + F.logsigmoid(-h) - math.log(1 - 2 * MARGIN)
        return slopes.sum(-1)


def generator_flow(settings: Settings) -> Flow:
    """The generator z -> x, the same initial weights for both objectives."""
    draw = generator_for("realnvp", "weights", settings.seed)
    couplings = RealNVP(DIM, settings.hidden, settings.layers, gain=0.1, generator=draw)
    return Composition(couplings, ToPixels(DIM))


def bits_per_dim(log_prob: Tensor) -> Tensor:
    """Natural logarithms of densities of x as bits per dimension of the grey values."""
    return UNIFORM_BITS - log_prob / (DIM * math.log(2))


class MaximumLikelihood:
    """Adam on -log p(x), the exact one; the learning rate falls to zero along half a cosine."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.flow = generator_flow(settings)
        self.draws = generator_for("realnvp", "mle", settings.seed)
        self.optimizer = torch.optim.Adam(self.flow.parameters())
        self.parts: dict[str, Any] = {"flow": self.flow, "optimizer": self.optimizer}

    def update(self, step: int) -> float:
        """One update; the loss in bits/dim."""
        fraction = step / self.settings.mle_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.mle_rate * (1 + math.cos(math.pi * fraction)) / 2
        loss = -self.flow.log_prob(_batch(self.settings, self.draws)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.flow.parameters(), CLIP)
        self.optimizer.step()
        return float(bits_per_dim(-loss.detach()))

    def distance(self, samples: Tensor) -> float | None:
        """None: there is no critic."""
        del samples
        return None  # noqa: RET501 (mypy wants it said)


class Wasserstein:
    r"""WGAN with gradient penalty (Gulrajani et al., 2017, arXiv:1704.00028).

    .. math:: \max_D \; \mathbb{E} D(x) - \mathbb{E} D(f(z))
              - \text{penalty} \cdot \mathbb{E} (|\nabla D(\hat x)| - 1)^2
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.flow = generator_flow(settings)
        self.draws = generator_for("realnvp", "wgan", settings.seed)
        self.critic = _critic(settings)
        momenta = (0.0, 0.9)
        self.optimizer = torch.optim.Adam(
            self.flow.parameters(), lr=settings.wgan_rate, betas=momenta
        )
        self.critics = torch.optim.Adam(
            self.critic.parameters(), lr=settings.critic_rate, betas=momenta
        )
        self.parts: dict[str, Any] = {
            "flow": self.flow,
            "optimizer": self.optimizer,
            "critic": self.critic,
            "critic optimizer": self.critics,
        }

    def update(self, step: int) -> float:
        """Updates of the critic, then one of the generator; the critic's estimate of W1."""
        del step
        gap = 0.0
        for _ in range(self.settings.critic_steps):
            gap = self._update_critic()
        loss = -self.critic(self._samples()).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return gap

    def distance(self, samples: Tensor) -> float | None:
        """The critic's difference between held-out digits and samples."""
        with torch.no_grad():
            return float(self.critic(held_out()).mean() - self.critic(samples.float()).mean())

    def _update_critic(self) -> float:
        real = _batch(self.settings, self.draws)
        with torch.no_grad():
            fake = self._samples()
        between = torch.rand(len(real), 1, generator=self.draws)
        mixed = (between * real + (1 - between) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(mixed).sum(), mixed, create_graph=True)
        penalty = (torch.linalg.vector_norm(slope, dim=-1) - 1).square().mean()
        gap = self.critic(real).mean() - self.critic(fake).mean()
        self.critics.zero_grad()
        (self.settings.penalty * penalty - gap).backward()
        self.critics.step()
        return float(gap.detach())

    def _samples(self) -> Tensor:
        return self.flow(torch.randn(self.settings.batch_size, DIM, generator=self.draws))


Trainer = MaximumLikelihood | Wasserstein
TRAINERS: dict[str, type[MaximumLikelihood] | type[Wasserstein]] = {
    "mle": MaximumLikelihood,
    "wgan": Wasserstein,
}


def _batch(settings: Settings, draws: torch.Generator) -> Tensor:
    chosen = torch.randint(NUM_TRAIN, (settings.batch_size,), generator=draws)
    return dequantised(_digits()[chosen], draws)


def _critic(settings: Settings) -> nn.Module:
    draws = generator_for("realnvp", "critic", settings.seed)
    sizes = (DIM, settings.critic_width, settings.critic_width, 1)
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        # The constructor of nn.Linear draws from the global generator; skip_init does not run it.
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=torch.float32)
        nn.init.normal_(linear.weight, std=(2 / fan_in) ** 0.5, generator=draws)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])
