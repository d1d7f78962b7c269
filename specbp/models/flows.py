r"""Maps whose log |det J| is known in closed form: what estimators of log det JᵀJ are judged by.

.. math:: \tfrac12 \log\det J(z)^\top J(z) = \log|\det J(z)| \quad (N = n)

Every map is smooth, so that gradients with respect to z exist, and treats the items of a batch
independently. The closed forms use no estimator, QR or Jacobian product of this package.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Flow(nn.Module):
    r"""A map f from R^n to R^N, N ≥ n, with its log-determinant; injective.

    A subclass defines `_transform` and, where an inverse exists, `_invert`. Initial parameters are
    float32 and drawn from the generator given, on its device; the global random state is neither
    read nor changed.

    Attributes:
        dim: n, the size of z.
        out_dim: N, the size of f(z).
    """

    def __init__(self, dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.dim, self.out_dim = dim, dim if out_dim is None else out_dim
        if not 1 <= self.dim <= self.out_dim:
            msg = f"A flow needs 1 <= dim <= out_dim, got dim={dim}, out_dim={self.out_dim}."
            raise ValueError(msg)

    def _transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f(z), (..., N), and the log-determinant at z, (...)."""
        raise NotImplementedError

    def _invert(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z with f(z) = x, (..., n), and the log-determinant of f at that z, (...)."""
        raise NotImplementedError(f"{type(self).__name__} has no inverse in closed form.")

    def forward(self, z: Tensor) -> Tensor:
        """Map ``z`` (..., n) to (..., N)."""
        return self._transform(z)[0]

    def log_det(self, z: Tensor) -> Tensor:
        """½ log det JᵀJ at ``z`` (..., n), which is log |det J| if N = n; shape (...)."""
        return self._transform(z)[1]

    def inverse(self, x: Tensor) -> Tensor:
        """The z with f(z) = ``x`` (..., N); shape (..., n)."""
        return self._invert(x)[0]

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density of f(z), z standard normal, at ``x`` (..., N); shape (...).

        .. math:: \log p(x) = -\tfrac12 |z|^2 - \tfrac n2 \log 2\pi - \log|\det J(z)|
        """
        z, log_det = self._invert(x)
        return -(z.square().sum(-1) + self.dim * math.log(2 * math.pi)) / 2 - log_det


class LinearFlow(Flow):
    r"""A general affine map, whose metric is the same at every point.

    .. math:: f(z) = A z + b, \qquad \tfrac12 \log\det A^\top A = \sum_i \log \sigma_i(A)

    The entries of A are normal with variance 1/n. `inverse` is the left inverse, exact on the range
    of f.

    Args:
        dim: n.
        out_dim: N ≥ n; default n.
        generator: Source of the initial parameters.

    Raises:
        ValueError: If not 1 ≤ n ≤ N.

    Example:
        >>> f = LinearFlow(2, 5, generator=torch.Generator().manual_seed(0))
        >>> z = torch.ones(3, 2)
        >>> f(z).shape, f.log_det(z).shape
        (torch.Size([3, 5]), torch.Size([3]))
    """

    def __init__(self, dim: int, out_dim: int | None = None, *, generator: torch.Generator) -> None:
        super().__init__(dim, out_dim)
        self.weight = nn.Parameter(normal((self.out_dim, dim), dim**-0.5, generator))
        self.bias = nn.Parameter(normal((self.out_dim,), 1.0, generator))

    def _transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self(z), self._log_det().expand(z.shape[:-1])

    def forward(self, z: Tensor) -> Tensor:
        """Map ``z`` (..., n) to (..., N), without the singular values of A."""
        return F.linear(z, self.weight, self.bias)

    def _invert(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = F.linear(x - self.bias, torch.linalg.pinv(self.weight))
        return z, self._log_det().expand(z.shape[:-1])

    def _log_det(self) -> Tensor:
        return torch.linalg.svdvals(self.weight).log().sum()


class TriangularFlow(Flow):
    r"""A lower triangular affine map: log-determinant from the diagonal.

    .. math:: f(z) = L z + b, \qquad l_{ii} = e^{d_i}, \qquad \log|\det L| = \sum_i d_i

    The eigenvalues of LᵀL are *not* the squared diagonal of L, and those of L are no help either.

    Args:
        dim: n.
        generator: Source of d, standard normal, and of the entries below, variance 1/n.

    Raises:
        ValueError: If n < 1.
    """

    def __init__(self, dim: int, *, generator: torch.Generator) -> None:
        super().__init__(dim)
        self.log_diagonal = nn.Parameter(normal((dim,), 1.0, generator))
        self.weight = nn.Parameter(normal((dim, dim), dim**-0.5, generator))
        self.bias = nn.Parameter(normal((dim,), 1.0, generator))

    def _transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(z, self._matrix(), self.bias), self._log_det(z)

    def _invert(self, x: Tensor) -> tuple[Tensor, Tensor]:
        columns = (x - self.bias).unsqueeze(-1)
        z = torch.linalg.solve_triangular(self._matrix(), columns, upper=False).squeeze(-1)
        return z, self._log_det(z)

    def _matrix(self) -> Tensor:
        return self.weight.tril(-1) + self.log_diagonal.exp().diag_embed()

    def _log_det(self, z: Tensor) -> Tensor:
        return self.log_diagonal.sum().expand(z.shape[:-1])


class ElementWiseFlow(Flow):
    r"""A monotone function of each coordinate, sinh-arcsinh with a scale: J is diagonal.

    .. math:: x_i = e^{a_i} \sinh y_i, \quad y_i = e^{c_i} \operatorname{arsinh} z_i + b_i, \qquad
              \log\frac{dx_i}{dz_i}
              = a_i + c_i + \log\cosh y_i - \tfrac12 \log(1 + z_i^2)

    The singular values of J are these derivatives: `spread` sets how far apart they lie.

    Args:
        dim: n.
        spread: Standard deviation of the log-scales a.
        generator: Source of a, b (standard deviation 0.5) and c (0.2).

    Raises:
        ValueError: If n < 1.

    Source: Jones & Pewsey (2009), doi:10.1093/biomet/asp053.
    """

    def __init__(self, dim: int, spread: float = 1.0, *, generator: torch.Generator) -> None:
        super().__init__(dim)
        self.log_scale = nn.Parameter(normal((dim,), spread, generator))
        self.shift = nn.Parameter(normal((dim,), 0.5, generator))
        self.log_power = nn.Parameter(normal((dim,), 0.2, generator))

    def _transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y = self.log_power.exp() * z.asinh() + self.shift
        return self.log_scale.exp() * y.sinh(), self._log_det(z, y)

    def _invert(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = (x * (-self.log_scale).exp()).asinh()
        z = ((y - self.shift) * (-self.log_power).exp()).sinh()
        return z, self._log_det(z, y)

    def _log_det(self, z: Tensor, y: Tensor) -> Tensor:
        log_cosh = y + F.softplus(-2 * y) - math.log(2)
        terms = self.log_scale + self.log_power + log_cosh - z.square().log1p() / 2
        return terms.sum(-1)


class Composition(Flow):
    r"""Flows applied one after the other: their log-determinants add.

    .. math:: f = f_L \circ \dots \circ f_1, \qquad
              \log|\det J_f(z)| = \sum_\ell \log|\det J_{f_\ell}(h_{\ell-1})|,
              \quad h_\ell = f_\ell(h_{\ell-1})

    Args:
        flows: At least one; all but the last one square, because ½ log det JᵀJ of a product adds
            only if the factors that are applied first are.

    Raises:
        ValueError: If there is no flow, sizes do not fit or a flow before the last is not square.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> f = Composition(
        ...     ElementWiseFlow(2, generator=generator), LinearFlow(2, 3, generator=generator)
        ... )
        >>> f(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(self, *flows: Flow) -> None:
        sizes = [(flow.dim, flow.out_dim) for flow in flows]
        if not flows or any(size != (flows[-1].dim,) * 2 for size in sizes[:-1]):
            msg = f"A composition needs flows of one size, the last alone may be tall; got {sizes}."
            raise ValueError(msg)
        super().__init__(*sizes[-1])
        self.flows = nn.ModuleList(flows)

    def forward(self, z: Tensor) -> Tensor:
        """Map ``z`` (..., n) to (..., N)."""
        for flow in self.flows:
            z = flow(z)
        return z

    def _transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(z.shape[:-1])
        for flow in self._members():
            z, log_det = flow._transform(z)
            total = total + log_det
        return z, total

    def _invert(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[:-1])
        for flow in reversed(self._members()):
            x, log_det = flow._invert(x)
            total = total + log_det
        return x, total

    def _members(self) -> list[Flow]:
        return cast("list[Flow]", list(self.flows))  # a ModuleList does not know what it holds


def normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    """Initial float32 parameters, on the device of the generator."""
    return std * torch.randn(
        shape, generator=generator, dtype=torch.float32, device=generator.device
    )
