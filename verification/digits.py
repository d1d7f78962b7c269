"""Regression tasks on scikit-learn's bundled digits: what the networks of the suite are trained on.

Each task is a frozen value that says everything about its data. The first `NUM_TRAIN` digits are
trained on; the others are held out, and give the points at which Jacobians are studied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

NUM_TRAIN = 1500  # of 1797
CODE_SIDE = 16  # codes are linear in 16x16 pictures, whatever the size of the decoded ones
COPIES = 2  # warped copies of each digit in the decoding task


@dataclass(frozen=True)
class Denoise:
    r"""Map x + dither·u + noise·e to x + dither·u, with u and e standard normal.

    The best denoiser has the Jacobian Cov[target | input] / noise² (Miyasawa, 1961). Some pixels of
    the digits hardly vary, and enlarged digits lie on a subspace: without the dither, which gives
    the targets a density, that matrix would be singular. With it, an eigenvalue in a direction that
    only the dither occupies is dither² / (dither² + noise²), 0.14 for the defaults.

    Attributes:
        shape: Of one item.
        side: The digits are resized to side x side pixels in [-1, 1]. 0 stands for their leading
            principal components, as many as `shape` says, of unit variance.
        noise: Standard deviation of what is to be removed.
        dither: Standard deviation of what belongs to the target.
    """

    shape: tuple[int, ...]
    side: int
    noise: float = 0.5
    dither: float = 0.2

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless float32 training pairs (inputs, targets), drawn with replacement."""
        x = self._clean()[:NUM_TRAIN].float()
        while True:
            i = torch.randint(len(x), (size,), generator=generator)
            yield self._pair(x[i], generator)

    def held_out(self) -> tuple[Tensor, Tensor]:
        """The float64 pairs of all digits that are not trained on, in a fixed order."""
        return self._pair(self._clean()[NUM_TRAIN:], torch.Generator().manual_seed(0))

    def points(self) -> Tensor:
        """The held-out inputs."""
        return self.held_out()[0]

    def trivial_loss(self) -> float:
        """Held-out mean squared error of the identity, the denoiser that does nothing."""
        return F.mse_loss(*self.held_out()).item()

    def _clean(self) -> Tensor:
        if not self.side:
            return _whitened(_digits().flatten(1), *self.shape)
        size = (self.side, self.side)
        x = F.interpolate(_digits(), size, mode="bilinear", align_corners=False)
        return x.reshape(-1, *self.shape)

    def _pair(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        u, e = torch.randn(2, *x.shape, dtype=x.dtype, generator=generator)
        target = x + self.dither * u
        return target + self.noise * e, target


@dataclass(frozen=True)
class Decode:
    """Map the whitened principal component code of a warped digit to its picture.

    8x8 digits span at most 64 dimensions; the warps make longer codes possible.

    Attributes:
        latent: Length of the code.
        size: Side of the picture, whose pixels are in [-1, 1].
        channels: Of the picture; more than one means a random tint.
    """

    latent: int
    size: int
    channels: int

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless float32 training pairs (codes, pictures), drawn with replacement."""
        train = _is_train(COPIES * len(_digits()))
        codes, pictures = self._codes()[train].float(), self._pictures()[train]
        while True:
            i = torch.randint(len(codes), (size,), generator=generator)
            yield codes[i], pictures[i]

    def held_out(self) -> tuple[Tensor, Tensor]:
        """The float64 pairs of all digits that are not trained on, in a fixed order."""
        return self.points(), self._pictures()[NUM_TRAIN : len(_digits())].double()

    def points(self) -> Tensor:
        """The held-out codes."""
        return self._codes()[NUM_TRAIN : len(_digits())]

    def trivial_loss(self) -> float:
        """Held-out mean squared error of the best constant picture."""
        _, pictures = self.held_out()
        return pictures.var(0, correction=0).mean().item()

    def _codes(self) -> Tensor:
        pictures = _warped(CODE_SIDE, self.channels, torch.float64)
        return _whitened(pictures.flatten(1), self.latent)

    def _pictures(self) -> Tensor:
        return _warped(self.size, self.channels, torch.float32)


Task = Denoise | Decode


@lru_cache(maxsize=1)
def _digits() -> Tensor:
    """The digits as pictures in [-1, 1]: (1797, 1, 8, 8), float64."""
    return torch.from_numpy(load_digits().images)[:, None] / 8 - 1


def _is_train(rows: int) -> Tensor:
    return torch.arange(rows) % len(_digits()) < NUM_TRAIN


def _warped(side: int, channels: int, dtype: torch.dtype) -> Tensor:
    """Each digit turned, scaled, shifted and, for several channels, tinted: `COPIES` times."""
    digits = _digits().repeat(COPIES, 1, 1, 1).to(dtype)
    generator = torch.Generator().manual_seed(0)
    unit = torch.rand(len(digits), 4 + channels, dtype=torch.float64, generator=generator)
    turn, zoom, right, down = (2 * unit[:, :4] - 1).unbind(1)
    cos = torch.exp(0.15 * zoom) * torch.cos(0.25 * turn)
    sin = torch.exp(0.15 * zoom) * torch.sin(0.25 * turn)
    theta = torch.stack([cos, -sin, 0.2 * right, sin, cos, 0.2 * down], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta.to(dtype), [len(digits), 1, side, side], align_corners=False)
    # The background is -1, but grid_sample pads with zeros: hence the shift by one.
    pictures = F.grid_sample(digits + 1, grid, padding_mode="zeros", align_corners=False)
    tint = 0.5 + 0.5 * unit[:, 4:, None, None].to(dtype) if channels > 1 else 1.0
    return pictures * tint - 1


def _whitened(x: Tensor, components: int) -> Tensor:
    """Leading principal components of the rows of x, of unit variance on the training rows."""
    train = x[_is_train(len(x))]
    mean = train.mean(0)
    eigenvalues, vectors = torch.linalg.eigh((train - mean).T @ (train - mean) / len(train))
    top = vectors[:, -components:].flip(1)
    # LAPACK leaves the sign of an eigenvector open: make its largest entry positive.
    top = top * top.gather(0, top.abs().argmax(0, keepdim=True)).sign()
    return (x - mean) @ (top / eigenvalues[-components:].flip(0).sqrt())
