r"""Targets on R^2: the test energies of Rezende & Mohamed (2015), and two data distributions.

The four energies, with :math:`w_1 = \sin(\pi z_1 / 2)`,
:math:`w_2 = 3 \exp(-\tfrac12 ((z_1 - 1) / 0.6)^2)` and
:math:`w_3 = 3 / (1 + \exp(-(z_1 - 1) / 0.3))`:

.. math::
   U_1 &= \tfrac12 \Bigl(\frac{\|z\| - 2}{0.4}\Bigr)^2
          - \log\Bigl(e^{-\frac12 ((z_1 - 2) / 0.6)^2} + e^{-\frac12 ((z_1 + 2) / 0.6)^2}\Bigr) \\
   U_2 &= \tfrac12 \Bigl(\frac{z_2 - w_1}{0.4}\Bigr)^2 \\
   U_3 &= -\log\Bigl(e^{-\frac12 ((z_2 - w_1) / 0.35)^2}
          + e^{-\frac12 ((z_2 - w_1 + w_2) / 0.35)^2}\Bigr) \\
   U_4 &= -\log\Bigl(e^{-\frac12 ((z_2 - w_1) / 0.4)^2}
          + e^{-\frac12 ((z_2 - w_1 + w_3) / 0.35)^2}\Bigr)

Only ``exp(-U1)`` can be normalised. The others have, for every z1, the same finite mass along z2:
over the plane their mass is infinite. Their confined forms are ours: they add a wall beyond the
region shown in the literature and nothing within it,

.. math:: U(z) + \tfrac12 \bigl(\max(|z_1| - 4, 0) / 0.5\bigr)^2,

which makes the normaliser :math:`\sqrt{2\pi}\, s\, (8 + 0.5 \sqrt{2\pi})`, s being the sum of the
widths along z2: 0.4, 0.35 + 0.35 and 0.4 + 0.35. The gradient of the wall is continuous and grows
linearly.

Reference:
    Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv:1505.05770.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Box = tuple[tuple[float, float], tuple[float, float]]

EDGE, WALL = 4.0, 0.5  # |z1| at which the wall begins, and its width


@dataclass(frozen=True)
class Energy:
    r"""An energy on R^2, the target density being :math:`\exp(-U(z)) / Z`.

    Called with points (..., 2), float32 or float64, it returns U (...) of the same dtype;
    differentiable, each point on its own.

    Attributes:
        name: Key in `ENERGIES`.
        function: z (..., 2) -> U (...).
        box: ((min, max) of z1, (min, max) of z2): of a normalised target all the mass but about
            1e-9, otherwise the region shown in the literature.
        log_normaliser: log Z where a closed form is known, inf where the mass is infinite, None
            where Z is finite and takes quadrature.

    Example:
        >>> U = ENERGIES["u2"]
        >>> U(torch.tensor([[1.0, 1.0], [1.0, 1.4]])), U.normalised
        (tensor([0.0000, 0.5000]), False)
    """

    name: str
    function: Callable[[Tensor], Tensor]
    box: Box
    log_normaliser: float | None = None

    @property
    def normalised(self) -> bool:
        """Whether the mass of exp(-U) is finite, so that there is a density."""
        return self.log_normaliser != math.inf

    def __call__(self, z: Tensor) -> Tensor:
        """U at ``z`` (..., 2), shape (...)."""
        _check_points(z)
        return self.function(z)


def _u1(z: Tensor) -> Tensor:
    ring = _parabola(torch.linalg.vector_norm(z, dim=-1) - 2, 0.4)
    z1 = z[..., 0]
    return ring + _softmin(_parabola(z1 - 2, 0.6), _parabola(z1 + 2, 0.6))


def _u2(z: Tensor) -> Tensor:
    return _parabola(_above_sine(z), 0.4)


def _u3(z: Tensor) -> Tensor:
    t, w2 = _above_sine(z), 3 * torch.exp(-_parabola(z[..., 0] - 1, 0.6))
    return _softmin(_parabola(t, 0.35), _parabola(t + w2, 0.35))


def _u4(z: Tensor) -> Tensor:
    t, w3 = _above_sine(z), 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    return _softmin(_parabola(t, 0.4), _parabola(t + w3, 0.35))


def _confined(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def confined(z: Tensor) -> Tensor:
        return function(z) + _parabola((z[..., 0].abs() - EDGE).clamp_min(0), WALL)

    return confined


def _above_sine(z: Tensor) -> Tensor:
    return z[..., 1] - torch.sin(math.pi / 2 * z[..., 0])


def _parabola(t: Tensor, width: float) -> Tensor:
    return (t / width).square() / 2


def _softmin(a: Tensor, b: Tensor) -> Tensor:
    """-log(exp(-a) + exp(-b)); the exponentials themselves underflow a few widths away."""
    return -torch.logaddexp(-a, -b)


def _confined_log_normaliser(widths: float) -> float:
    root = math.sqrt(2 * math.pi)
    return math.log(root * widths * (2 * EDGE + root * WALL))


_SHOWN: Box = ((-4.0, 4.0), (-4.0, 4.0))
_REACH = EDGE + 7 * WALL
_BANDS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {  # U, widths, lowest z2
    "u2": (_u2, 0.4, -4.0),
    "u3": (_u3, 0.35 + 0.35, -7.0),
    "u4": (_u4, 0.4 + 0.35, -7.0),
}

ENERGIES: dict[str, Energy] = {
    energy.name: energy
    for energy in (
        Energy("u1", _u1, ((-5.0, 5.0), (-5.0, 5.0))),
        *(Energy(name, U, _SHOWN, math.inf) for name, (U, _, _) in _BANDS.items()),
        *(
            Energy(
                f"{name}_confined",
                _confined(U),
                ((-_REACH, _REACH), (lowest, 4.0)),
                _confined_log_normaliser(widths),
            )
            for name, (U, widths, lowest) in _BANDS.items()
        ),
    )
}
"""The energies by name: u1 to u4 as published, u2_confined to u4_confined with finite mass."""


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    r"""Equally weighted spherical normals, with exact log density and exact samples.

    .. math:: p(x) = \frac1K \sum_{k=1}^K \mathcal N(x; \mu_k, s^2 I)

    Attributes:
        name: Key in `DATA`.
        means: The K centres (K, 2), float64.
        std: s.
        box: Region that holds all the mass but about 1e-9.

    Example:
        >>> from specbp import generator_for
        >>> data = DATA["moons"]
        >>> x = data.sample(5, generator=generator_for("example"), dtype=torch.float32)
        >>> x.shape, data.log_prob(x).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    name: str
    means: Tensor
    std: float
    box: Box

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at ``x`` (..., 2), shape (...), of its dtype; differentiable."""
        _check_points(x)
        t = (x.unsqueeze(-2) - self.means.to(x)) / self.std
        constant = math.log(2 * math.pi * self.std**2 * len(self.means))
        return torch.logsumexp(-t.square().sum(-1) / 2, -1) - constant

    def sample(
        self,
        num: int,
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Draw ``num`` points (num, 2), on the CPU in float64, then converted.

        Raises:
            ValueError: If ``num`` is negative.
        """
        if num < 0:
            msg = f"num must not be negative, got {num}."
            raise ValueError(msg)
        component = torch.randint(len(self.means), (num,), generator=generator)
        noise = torch.randn(num, 2, generator=generator, dtype=torch.float64)
        return (self.means[component] + self.std * noise).to(dtype)


def _arc(start: float, end: float, num: int, *, closed: bool) -> Tensor:
    """Points of the unit circle at equal angles; the end belongs to an arc, not to a ring."""
    steps = torch.arange(num, dtype=torch.float64) / (num - 1 if not closed else num)
    angle = start + (end - start) * steps
    return torch.stack([angle.cos(), angle.sin()], -1)


def _eight() -> GaussianMixture:
    means = 2 * _arc(0, 2 * math.pi, 8, closed=True)
    return GaussianMixture("eight", means, 0.2, ((-3.5, 3.5), (-3.5, 3.5)))


def _moons() -> GaussianMixture:
    # Neighbours are less than half a standard deviation apart: the arcs show no ripple.
    upper = 2 * _arc(0, math.pi, 65, closed=False) + torch.tensor([-1.0, -0.5]).double()
    return GaussianMixture("moons", torch.cat([upper, -upper]), 0.2, ((-4.5, 4.5), (-3.0, 3.0)))


DATA: dict[str, GaussianMixture] = {data.name: data for data in (_eight(), _moons())}
"""Data for maximum likelihood: eight normals on a circle, and two interlocking half circles.

Both are ours: Ramesh & LeCun (2018) do not name their two examples.
"""


def _check_points(z: Tensor) -> None:
    if z.shape[-1:] != (2,):
        msg = f"points of R^2 have shape (..., 2), got {tuple(z.shape)}."
        raise ValueError(msg)
