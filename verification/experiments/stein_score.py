r"""The Stein gradient estimator: the score of an implicit density from samples alone.

.. math:: \mathbb{E}_q \bigl[ k(x, \cdot)\, \nabla_x \log q(x) + \nabla_x k(x, \cdot) \bigr] = 0

Source: Li & Turner (2018), arXiv:1705.07107.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def median_bandwidth(x: Tensor, *, scaled: bool = True) -> Tensor:
    r"""Width h of the kernel by the median heuristic, a scalar.

    .. math:: h^2 = \frac{\operatorname{median}_{i<j} |x_i - x_j|^2}{2 \log(K + 1)}
              \quad\text{or, not scaled,}\quad h^2 = \operatorname{median}_{i<j} |x_i - x_j|^2

    Args:
        x: Samples (K, d), K ≥ 2.
        scaled: Whether to divide by 2 log(K + 1), so that a point sees about one neighbour.

    Raises:
        ValueError: If x is not (K, d) with K ≥ 2.
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"x must be at least 2 samples, (K, d), got shape {tuple(x.shape)}.")
    square = torch.nn.functional.pdist(x).square().median()
    return (square / (2 * math.log(len(x) + 1) if scaled else 1)).sqrt()


def stein_score(x: Tensor, *, eta: float, bandwidth: Tensor | float) -> Tensor:
    r"""∇ log q at samples x of q, (K, d), by kernel ridge regression on Stein's identity.

    .. math:: \hat G = -(K + \eta I)^{-1} \langle \nabla, K \rangle, \qquad
              \langle \nabla, K \rangle_i = \sum_j \nabla_{x_j} k(x_i, x_j)
              = \sum_j \frac{x_i - x_j}{h^2} k(x_i, x_j)

    with k(x, y) = exp(−|x − y|² / (2h²)). Biased by h and η; K³/3 operations.

    Args:
        x: Samples (K, d).
        eta: Ridge η > 0.
        bandwidth: h > 0, for instance `median_bandwidth`.

    Raises:
        ValueError: If eta or bandwidth is not positive.

    Source: Li & Turner (2018), arXiv:1705.07107, section 3.

    Example:
        >>> import torch
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> stein_score(x, eta=1.0, bandwidth=1.0).flatten() > 0
        tensor([ True, False])
    """
    h = torch.as_tensor(bandwidth, dtype=x.dtype)
    if not (eta > 0 and bool(h > 0)):
        raise ValueError(f"eta and bandwidth must be positive, got {eta} and {float(h)}.")
    kernel = torch.exp(-torch.cdist(x, x).square() / (2 * h**2))
    drift = (kernel.sum(-1, keepdim=True) * x - kernel @ x) / h**2
    factor = torch.linalg.cholesky(kernel + eta * torch.eye(len(x), dtype=x.dtype))
    return -torch.cholesky_solve(drift, factor)


def entropy_gradient(
    f: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], z: Tensor, score: Tensor
) -> Tensor:
    r"""Gradient of the entropy of f(z) with respect to parameters, given the score at f(z), flat.

    .. math:: \nabla_\theta \mathbb{E}[-\log p_X(f_\theta(z))]
              = -\mathbb{E} \Bigl[ \Bigl(\frac{\partial f_\theta(z)}{\partial\theta}\Bigr)^\top
                \nabla_x \log p_X(f_\theta(z)) \Bigr]

    The expectation of the score itself is zero, so only the path through f remains.

    Args:
        f: Maps (K, n) to (K, N).
        parameters: θ, which f depends on.
        z: Draws (K, n).
        score: ∇ log p_X at f(z), (K, N), a constant.
    """
    return flat_gradient(-(f(z) * score.detach()).sum(-1).mean(), parameters)


def flat_gradient(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient of a scalar as one vector, zero where it does not depend on a parameter."""
    found = torch.autograd.grad(value, list(parameters), allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
