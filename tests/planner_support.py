"""Operators and questions shared by the tests of the planner."""

from __future__ import annotations

import torch

from specbp.planner import logdet
from specbp.probes import generator_for
from tests.support import geometric, spd


class Implicit:
    """Only products are known of it."""

    def __init__(self, matrix):
        self.matrix = matrix

    shape = property(lambda self: self.matrix.shape)
    dtype = property(lambda self: self.matrix.dtype)
    device = property(lambda self: self.matrix.device)

    def __matmul__(self, X):
        return self.matrix @ X


class ImplicitFactor(Implicit):
    mT = property(lambda self: ImplicitFactor(self.matrix.mT))


def ask(A, *key, **options):
    return logdet(A, generator=generator_for("planner", *key), **options)


def truth(A):
    return torch.linalg.eigvalsh(A).log().sum(-1)


def well(n=400, cond=10.0):
    return spd(geometric(n, cond))
