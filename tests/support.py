"""Inputs and oracles shared by the tests: dense matrices, designs of probes, float64 answers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from specbp.estimate import Estimate, Status

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
f32, f64 = torch.float32, torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = f64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=f64).to(dtype)


def signs(*shape: int, seed: int = 0, dtype: torch.dtype = f64) -> Tensor:
    return (2 * torch.randint(0, 2, shape, generator=generator(seed)) - 1).to(dtype)


def orthonormal(N: int, n: int, seed: int = 0) -> Tensor:
    """N × n with orthonormal columns, uniformly distributed up to signs."""
    return torch.linalg.qr(normal(N, n, seed=seed))[0]


def geometric(n: int, cond: float) -> Tensor:
    """Eigenvalues from 1 down to 1 / cond."""
    return torch.logspace(0, -np.log10(cond), n, dtype=f64)


def spd(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """Exactly symmetric matrix with (up to rounding) these eigenvalues."""
    Q = orthonormal(len(eigenvalues), len(eigenvalues), seed)
    A = (Q * eigenvalues) @ Q.mT
    return (A + A.mT) / 2


def factor(singular_values: Tensor, N: int, seed: int = 0) -> Tensor:
    """N × n matrix with these singular values."""
    n = len(singular_values)
    return (orthonormal(N, n, seed) * singular_values) @ orthonormal(n, n, seed + 1).mT


def all_signs(n: int) -> Tensor:
    """Every vector of n signs with first entry +1, as columns: the law of any even functional."""
    codes = torch.arange(2 ** (n - 1))
    bits = codes >> torch.arange(n).unsqueeze(-1) & 1
    return (1 - 2 * bits).to(f64)


def hadamard(n: int) -> Tensor:
    """Sylvester's matrix: its n columns average x xᵀ to I exactly."""
    H = torch.ones(1, 1, dtype=f64)
    while len(H) < n:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H


def strength_five_array(bits: int = 6, modulus: int = 0b1000011) -> Tensor:
    """4^bits sign vectors of length 2^bits whose moments to order 5 are those of all sign vectors.

    Column (a, b) holds (−1)^Tr(a t + b t³) for t in GF(2^bits): the dual of the extended BCH code
    that corrects two errors (Delsarte 1973). Its mean and variance of any xᵀBx are the exact ones.
    """
    n = 1 << bits

    def times(a: int, b: int) -> int:
        result = 0
        while b:
            result, a, b = result ^ (a if b & 1 else 0), a << 1, b >> 1
            a ^= modulus if a & n else 0
        return result

    def trace(a: int) -> int:
        total = 0
        for _ in range(bits):
            total, a = total ^ a, times(a, a)
        return total

    traces = torch.tensor([[trace(times(a, t)) for t in range(n)] for a in range(n)])
    cubes = torch.tensor([times(t, times(t, t)) for t in range(n)])
    exponent = traces.unsqueeze(1) + traces[:, cubes].unsqueeze(0)  # (a, b, t)
    return (1 - 2 * (exponent % 2)).to(f64).reshape(n * n, n).mT


def log_forms(A: Tensor, X: Tensor) -> Tensor:
    """xᵀ log(A) x of every column from the eigendecomposition of A in float64."""
    eigenvalues, V = torch.linalg.eigh(A.double())
    return eigenvalues.log() @ (V.mT @ X.double()) ** 2


def log_forms_of_factor(J: Tensor, X: Tensor) -> Tensor:
    """xᵀ log(JᵀJ) x of every column from the singular value decomposition of J in float64."""
    _, sigma, right = torch.linalg.svd(J.double(), full_matrices=False)
    return 2 * sigma.log() @ (right @ X.double()) ** 2


def naive_lanczos(A: np.ndarray, x: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """One probe, the three-term recurrence and two Gram–Schmidt sweeps, vector by vector."""
    q, Q, alphas, betas = x / np.linalg.norm(x), [], [], []
    for _ in range(k):
        Q.append(q)
        w = A @ q
        alphas.append(q @ w)
        for _ in range(2):
            for p in Q:
                w = w - (p @ w) * p
        betas.append(np.linalg.norm(w))
        q = w / betas[-1]
    return np.array(alphas), np.array(betas), np.array(Q)


def naive_gauss(A: Tensor, X: Tensor, k: int) -> Tensor:
    """k-point Gauss rule of log for every column, probe by probe in numpy."""
    values = []
    for x in X.double().mT.numpy():
        alphas, betas, _ = naive_lanczos(A.double().numpy(), x, k)
        T = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
        nodes, S = np.linalg.eigh(T)
        values.append(x @ x * (S[0] ** 2 @ np.log(nodes)))
    return torch.tensor(values, dtype=f64)


def chebyshev_matrix(A: Tensor, degree: int, a: float, b: float) -> Tensor:
    """p(A) for the interpolant of log at the Chebyshev points of [a, b], by numpy."""
    p = interpolant(degree, a, b)
    eigenvalues, V = torch.linalg.eigh(A.double())
    return (V * torch.from_numpy(p(eigenvalues.numpy()))) @ V.mT


def interpolant(degree: int, a: float, b: float) -> np.polynomial.Chebyshev:
    return np.polynomial.Chebyshev.interpolate(np.log, degree, domain=[a, b])


def truncated_series(degree: int, a: float, b: float) -> np.polynomial.Chebyshev:
    """The Chebyshev series of log, from an interpolant of much higher degree, cut off."""
    return interpolant(4000, a, b).truncate(degree + 1)


def taylor_polynomial(degree: int, alpha: float) -> np.polynomial.Polynomial:
    """log α − Σ_k (1 − x/α)^k / k in powers of (1 − x/α), evaluated by numpy."""
    powers = [np.log(alpha)] + [-1 / k for k in range(1, degree + 1)]
    return np.polynomial.Polynomial(powers, domain=[0, alpha], window=[1, 0])


def variance_of_signs(B: Tensor) -> float:
    """Var xᵀBx over independent signs, B symmetric: 2 ‖B − diag B‖²."""
    return float(2 * (B.square().sum() - B.diagonal().square().sum()))


def flags(est: Estimate) -> Status:
    """The flags of a scalar estimate."""
    return Status(int(est.status))


def blind_start(
    n: int = 30, m: int = 6, cond: float = 100.0, top: float = 1.5, dtype: torch.dtype = f64
) -> tuple[Tensor, Tensor]:
    """A diagonal A whose largest eigenvalue, `top`, the first probe does not see.

    The others are geometric, 1 / cond … 0.98 or less: no bound found from the first probe is right.
    """
    values = geometric(n, cond)
    values[0] = top
    X = normal(n, m, seed=7)
    X[0, 0] = 0
    return torch.diag(values).to(dtype), X.to(dtype)
