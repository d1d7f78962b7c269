"""Flows by neural networks: couplings (NICE, RealNVP) and a masked autoregressive map (MADE)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specbp.models.flows import Composition, Flow, normal


class Coupling(Flow):
    r"""Some coordinates are kept, the others scaled and shifted by functions of those kept.

    .. math:: x_K = z_K, \qquad x_M = z_M \odot e^{s(z_K)} + t(z_K), \qquad
              \log|\det J| = \textstyle\sum_i s_i(z_K)

    The base of `AdditiveCoupling` (s = 0) and `AffineCoupling`.

    Args:
        dim: n ≥ 2.
        kept: Boolean mask (n,) of the coordinates kept; default the first half.
        device: Where the mask lives.

    Raises:
        ValueError: If the mask keeps all coordinates or none.
    """

    kept: Tensor

    def __init__(
        self, dim: int, kept: Tensor | None = None, *, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(dim)
        kept = torch.arange(dim) < dim // 2 if kept is None else kept
        if kept.shape != (dim,) or kept.dtype != torch.bool or not 0 < int(kept.sum()) < dim:
            msg = (
                f"kept must be a boolean mask of shape ({dim},) with both values, "
                f"got shape {tuple(kept.shape)}, {kept.dtype}, {int(kept.sum())} kept."
            )
            raise ValueError(msg)
        self.register_buffer("kept", kept.to(device, torch.float32))

    def _transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._conditioner(z)
        return z * log_scale.exp() + shift, log_scale.sum(-1)

    def _invert(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._conditioner(x)
        return (x - shift) * (-log_scale).exp(), log_scale.sum(-1)

    def _conditioner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Functions s and t of what is kept, both (..., n) and zero where kept."""
        raise NotImplementedError


class AdditiveCoupling(Coupling):
    r"""NICE's layer: log |det J| = 0 exactly, although the singular values of J are not 1.

    .. math:: x_K = z_K, \qquad x_M = z_M + t(z_K)

    The logarithms of the eigenvalues of JᵀJ cancel, a severe test of a stochastic trace.

    Args:
        dim: n ≥ 2.
        hidden: Width of the two tanh layers of t.
        kept: Boolean mask (n,) of K; default the first half.
        gain: Factor on the last layer of t at initialisation.
        generator: Source of the initial parameters.

    Raises:
        ValueError: If the mask keeps all coordinates or none.

    Source: Dinh, Krueger & Bengio (2015), arXiv:1410.8516.
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 32,
        kept: Tensor | None = None,
        *,
        gain: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__(dim, kept, device=generator.device)
        self.net = _MLP((dim, hidden, hidden, dim), gain=gain, generator=generator)

    def _conditioner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift = (1 - self.kept) * self.net(self.kept * x)
        return torch.zeros_like(shift), shift


class AffineCoupling(Coupling):
    r"""RealNVP's layer, with log-scales between ±bound.

    .. math:: x_K = z_K, \quad x_M = z_M \odot e^{s(z_K)} + t(z_K), \quad
              s = \text{bound} \cdot \tanh(r / \text{bound})

    Args:
        dim: n ≥ 2.
        hidden: Width of the two tanh layers that r and t share.
        kept: Boolean mask (n,) of K; default the first half.
        bound: Largest |s|, which keeps exp(s) representable.
        gain: Factor on the last layer at initialisation.
        generator: Source of the initial parameters.

    Raises:
        ValueError: If the mask keeps all coordinates or none.

    Source: Dinh, Sohl-Dickstein & Bengio (2017), arXiv:1605.08803.
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 32,
        kept: Tensor | None = None,
        *,
        bound: float = 2.0,
        gain: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__(dim, kept, device=generator.device)
        self.bound = bound
        self.net = _MLP((dim, hidden, hidden, 2 * dim), gain=gain, generator=generator)

    def _conditioner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = ((1 - self.kept).repeat(2) * self.net(self.kept * x)).chunk(2, -1)
        return self.bound * (raw / self.bound).tanh(), shift


class AutoregressiveFlow(Flow):
    r"""MADE with Gaussian conditionals, as a generator: J is lower triangular.

    .. math:: x_i = \mu_i(x_{<i}) + e^{s_i(x_{<i})} z_i, \qquad \log|\det J| = \textstyle\sum_i s_i

    One masked hidden layer gives all μ and s: unit k has a degree m(k) uniform on 1 … n − 1, reads
    the inputs d ≤ m(k) and is read by the outputs d > m(k). `inverse` needs one pass, f itself n.

    Args:
        dim: n ≥ 2.
        hidden: Number of tanh units.
        bound: Largest |s|.
        generator: Source of the degrees and of the initial parameters.

    Raises:
        ValueError: If n < 2.

    Source: Germain et al. (2015), arXiv:1502.03509; Papamakarios et al. (2017), arXiv:1705.07057.
    """

    def __init__(
        self, dim: int, hidden: int = 64, *, bound: float = 2.0, generator: torch.Generator
    ) -> None:
        super().__init__(dim)
        if dim < 2:
            raise ValueError(f"An autoregressive flow needs dim >= 2, got {dim}.")
        self.bound = bound
        device = generator.device
        degree = torch.randint(1, dim, (hidden, 1), generator=generator, device=device)
        inputs = torch.arange(1, dim + 1, device=device)
        masks = (degree >= inputs, (inputs > degree).mT.repeat(2, 1))
        self.net = _MLP((dim, hidden, 2 * dim), masks=masks, generator=generator)

    def _transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = log_scale = torch.zeros_like(z)
        for _ in range(self.dim):  # pass i settles coordinate i: all before it are right
            mean, log_scale = self._conditionals(x)
            x = mean + log_scale.exp() * z
        return x, log_scale.sum(-1)

    def _invert(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self._conditionals(x)
        return (x - mean) * (-log_scale).exp(), log_scale.sum(-1)

    def _conditionals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.net(x).chunk(2, -1)
        return mean, self.bound * (raw / self.bound).tanh()


class RealNVP(Composition):
    r"""Affine couplings with alternating masks, so that every coordinate moves: exact both ways.

    The masks keep in turn the even coordinates, the odd ones, the second half and the first half.

    Args:
        dim: n ≥ 2.
        hidden: Width of the two tanh layers of each coupling.
        layers: Number of couplings.
        bound: Largest |s| of a coupling.
        gain: Factor on the last layers at initialisation; 0 starts from the identity.
        generator: Source of the initial parameters.

    Raises:
        ValueError: If n < 2 or there is no layer.

    Source: Dinh, Sohl-Dickstein & Bengio (2017), arXiv:1605.08803.

    Example:
        >>> f = RealNVP(4, generator=torch.Generator().manual_seed(0)).double()
        >>> z = torch.ones(4, dtype=torch.float64)
        >>> bool((f.inverse(f(z)) - z).abs().max() < 1e-10)
        True
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 32,
        layers: int = 4,
        *,
        bound: float = 2.0,
        gain: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        i = torch.arange(dim)
        masks = (i % 2 == 0, i % 2 == 1, i >= dim // 2, i < dim // 2)
        couplings = (
            AffineCoupling(
                dim, hidden, masks[layer % 4], bound=bound, gain=gain, generator=generator
            )
            for layer in range(layers)
        )
        super().__init__(*couplings)


class _MLP(nn.Module):
    """Affine layers with tanh between them, their weights times masks if there are any."""

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        masks: Sequence[Tensor] = (),
        gain: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        gains = [1.0] * (len(shapes) - 1) + [gain]
        self.weights = nn.ParameterList(
            normal(shape, g * shape[1] ** -0.5, generator)
            for shape, g in zip(shapes, gains, strict=True)
        )
        self.biases = nn.ParameterList(
            normal((rows,), 0.5 * g, generator) for (rows, _), g in zip(shapes, gains, strict=True)
        )
        for layer, mask in enumerate(masks):
            self.register_buffer(f"mask{layer}", mask.to(torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., first size) to (..., last size)."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            masked = getattr(self, f"mask{layer}", 1.0) * weight
            x = F.linear(x if layer == 0 else x.tanh(), masked, bias)
        return x
