"""Eigenbases: Haar distributed orthogonal matrices and products of Householder reflectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specbp.operators import check_probes


def haar(
    n: int,
    *,
    generator: torch.Generator,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Orthogonal matrices (*batch_shape, n, n) with the uniform (Haar) law.

    The factor Q of a Gaussian matrix, its columns signed so that diag(R) > 0: otherwise the law is
    that of the QR routine's sign convention. Drawn on the CPU in float64, then rounded: float32 and
    float64, CPU and GPU get the same matrix.

    Raises:
        ValueError: If n < 1.

    Source: Stewart (1980), doi:10.1137/0717034; Mezzadri (2007), arXiv:math-ph/0609050.
    """
    _check_positive(n=n)
    G = torch.randn((*batch_shape, n, n), generator=generator, dtype=torch.float64)
    Q, R = torch.linalg.qr(G)
    signs = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)
    return (Q * signs).to(dtype=dtype, device=device)


def random_householder(
    n: int,
    num_reflectors: int,
    *,
    generator: torch.Generator,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Householder:
    """Product of reflectors with independent uniform directions, drawn as in `haar`.

    Raises:
        ValueError: If n < 1 or num_reflectors < 1.
    """
    _check_positive(n=n, num_reflectors=num_reflectors)
    shape = (*batch_shape, n, num_reflectors)
    V = torch.randn(shape, generator=generator, dtype=torch.float64)
    V = V / torch.linalg.vector_norm(V, dim=-2, keepdim=True)
    return Householder(V.to(dtype=dtype, device=device))


class Householder:
    r"""Orthogonal matrix (..., n, n) that is a product of k reflectors, one for each column of V.

    .. math:: Q = H_1 \cdots H_k = I - V T V^\top, \quad H_i = I - 2 v_i v_i^\top / v_i^\top v_i,
              \quad T^{-1} = \operatorname{striu}(V^\top V) + \tfrac12 \operatorname{diag}(V^\top V)

    T is computed in float64 from the stored vectors, so Q is orthogonal for those: rounding V to
    float32 gives another orthogonal matrix. A product costs 4nk operations for each column.

    Q is the identity on n − k dimensions, so with few reflectors QΛQᵀ is close to diagonal:
    Rademacher probes then have about 1 − exp(−8k/n) of the variance they have with `haar`.
    Probes of a rotation invariant law (Gaussian, sphere) see no difference.

    Args:
        vectors: V (..., n, k), k ≥ 1, float32 or float64, no column zero.

    Raises:
        TypeError: If V is not float32 or float64.
        ValueError: If its shape is wrong, or a vector is zero or not finite.

    Source: Schreiber & Van Loan (1989), doi:10.1137/0910005; T⁻¹ from VᵀV: Joffrain et al. (2006),
    doi:10.1145/1141885.1141886.
    """

    def __init__(self, vectors: Tensor):
        _check_vectors(vectors)
        self.vectors, self.dtype, self.device = vectors, vectors.dtype, vectors.device
        self.shape = torch.Size((*vectors.shape[:-1], vectors.shape[-2]))
        V = vectors.double()
        T = _coupling(V)
        # Stored as rows (k, n), like the blocks: up to 4 times faster in the thin products.
        self._vectors = vectors.mT.contiguous()
        self._weights = (V @ T).mT.to(self.dtype).contiguous()
        self._weights_mT = (V @ T.mT).mT.to(self.dtype).contiguous()

    @property
    def mT(self) -> Householder:
        """The transpose, H_k ⋯ H_1."""
        return Householder(self.vectors.flip(-1))

    def __matmul__(self, X: Tensor) -> Tensor:
        return self.reflect_rows(check_probes(self, X)).mT

    def reflect_rows(
        self, rows: Tensor, *, transpose: bool = False, overwrite: bool = False
    ) -> Tensor:
        """Rows (..., m, n) times Qᵀ, or times Q if `transpose`; `overwrite` may reuse their memory.

        rows Qᵀ = rows − (rows V)(VT)ᵀ: two thin products. Memory traffic dominates, so the batch
        of an unbatched Q is one gemm that accumulates into the result.
        """
        weights = self._weights_mT if transpose else self._weights
        if weights.ndim > 2:
            change = (rows @ self._vectors.mT) @ weights
            return rows.sub_(change) if overwrite else rows - change
        flat = rows.flatten(0, -2)
        addmm = flat.addmm_ if overwrite else flat.addmm
        return addmm(flat @ self._vectors.mT, weights, alpha=-1).view(rows.shape)

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Householder:
        """The product of the reflectors of the rounded or moved vectors."""
        return Householder(self.vectors.to(dtype=dtype or self.dtype, device=device))

    def dense(self) -> Tensor:
        """Q in float64."""
        V = self.vectors.double()
        return torch.eye(V.shape[-2], dtype=V.dtype, device=V.device) - V @ _coupling(V) @ V.mT


def _coupling(V: Tensor) -> Tensor:
    # QᵀQ = I − V (T + Tᵀ − Tᵀ VᵀV T) Vᵀ = I if and only if T⁻¹ + T⁻ᵀ = VᵀV.
    gram = V.mT @ V
    halves = torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1) / 2)
    identity = torch.eye(V.shape[-1], dtype=V.dtype, device=V.device)
    return torch.linalg.solve_triangular(gram.triu(1) + halves, identity, upper=True)


def _check_vectors(vectors: Tensor) -> None:
    if vectors.dtype not in (torch.float32, torch.float64):
        msg = f"Householder vectors are float32 or float64, got {vectors.dtype}: convert them."
        raise TypeError(msg)
    if vectors.ndim < 2 or 0 in vectors.shape:
        msg = f"Householder vectors have shape (..., n, k), k ≥ 1, got {tuple(vectors.shape)}."
        raise ValueError(msg)
    squares = vectors.double().square().sum(-2)
    if not bool((squares.isfinite() & (squares > 0)).all()):
        msg = "Every Householder vector must be finite and not zero: drop those that are."
        raise ValueError(msg)


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            msg = f"{name} must be at least 1, got {size}."
            raise ValueError(msg)
