"""Estimators as others write them, and as they should not: named by import path in the tests."""

from __future__ import annotations

import math
import os
import time

import torch

from specbp import CountingOperator, hutchinson_trace, rademacher
from specbp.estimate import from_samples
from specbp.methods import METHODS
from verification.subjects import from_method

not_callable = 3
row = METHODS["hutchinson"]
subject = from_method(row)


def forms(A, X):
    return (X * (A @ X)).sum(0)


def signs(n, m, generator=None):
    # Global randomness if there is no generator, as foreign code has it.
    return (
        2 * torch.bernoulli(torch.full((n, m), 0.5, dtype=torch.float64), generator=generator) - 1
    )


# Functions of (operator, probes) ------------------------------------------------------------------


def estimate(A, probes):
    A = CountingOperator(A)
    return from_samples((probes * (A @ probes)).sum(-2), num_matvecs=A.num_matvecs)


def pair(A, probes):
    y = forms(A, probes)
    return y.mean(), y.std() / math.sqrt(len(y))


def ddof_zero(A, probes):
    y = forms(A, probes)
    return y.mean(), y.std(correction=0) / math.sqrt(len(y))


def tensor_only(A, probes):
    return torch.einsum("im,ij,jm->m", probes, A, probes).mean()


def of_factor(J, omega):
    return (J @ omega).square().sum(0).mean()


def with_interval(A, probes, interval, scale=1.0):
    return scale * forms(A, probes).mean() * (interval[1] > interval[0])


def returns_a_vector(A, probes):
    return probes[:, 0]


# Black boxes --------------------------------------------------------------------------------------


def right(A, generator):
    y = forms(A, signs(A.shape[-1], 8, generator))
    return y.mean(), y.std() / math.sqrt(len(y))


def global_signs(A):
    return forms(A, signs(A.shape[-1], 8)).mean()


def gaussian(A, generator):
    X = torch.randn(A.shape[-1], 8, generator=generator, dtype=torch.float64)
    return forms(A, X).mean()


def hutchpp(A, generator):
    n = A.shape[-1]
    S, G = signs(n, 6, generator), signs(n, 6, generator)
    Q, _ = torch.linalg.qr(A @ S)
    G = G - Q @ (Q.mT @ G)
    return torch.trace(Q.mT @ (A @ Q)) + (G * (A @ G)).sum() / 6


def small_bars(A, generator):
    value, bar = right(A, generator)
    return value, 0.7 * bar


def biased(A, generator):
    return 1.02 * right(A, generator)[0]


def frozen(A):
    return forms(A, signs(A.shape[-1], 8, torch.Generator().manual_seed(0))).mean()


def from_entropy(A):
    generator = torch.Generator()
    generator.seed()
    return forms(A, signs(A.shape[-1], 8, generator)).mean()


def exact(A):
    return torch.logdet(A)


def library(A, generator):
    return hutchinson_trace(A, rademacher(A.shape[-1], 8, generator=generator))


def ignores_its_matrix(A, generator):
    return torch.randn((), generator=generator)


def reads_the_diagonal(A, generator):
    # Right on average, and never a product.
    noise = torch.randn((), generator=generator, dtype=torch.float64)
    return A.diagonal().sum() + noise


def raises(A):
    raise RuntimeError("no convergence <after> 3 steps")


def returns_nan(A):
    return math.nan


def sometimes_nan(A, generator):
    return right(A, generator)[0] if torch.rand((), generator=generator) < 0.9 else math.nan


def wrong_shape(A):
    return torch.zeros(3)


def leaves(A):
    raise SystemExit(0)


def hangs(A):
    print("this must not reach the table")
    time.sleep(1000)


def dies(A):
    os._exit(3)
