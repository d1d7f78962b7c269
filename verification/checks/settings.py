"""How much is checked: the sizes, levels and seeds of the checks, one preset for each gate tier."""

from __future__ import annotations

from dataclasses import dataclass

from verification.runner import EPOCH


@dataclass(frozen=True)
class Settings:
    """Sizes and levels of the checks of one subject.

    Attributes:
        epoch: Part of every seed.
        alpha: Level of each random check of tier P, and of each family of cells of tier S.
        sizes: Replicates at the looks of tier S.
        enumerate_n: Order of the matrices for which all sign vectors are listed.
        array_n: Order of the matrices that meet a Hadamard basis and an orthogonal array.
        probe_ns: Orders of the matrices whose probes are compared one by one.
        dtypes: Precisions in which probes are compared one by one; all else is float64.
        law_probes: Probes that the sampler draws for the checks of its law.
    """

    epoch: str = EPOCH
    alpha: float = 1e-6
    sizes: tuple[int, ...] = (64, 256, 1024)
    enumerate_n: int = 10
    array_n: int = 64
    probe_ns: tuple[int, ...] = (10, 64, 200)
    dtypes: tuple[str, ...] = ("float64", "float32")
    law_probes: int = 2048


TIERS = {
    "unit": Settings(),
    "pull-request": Settings(),
    "nightly": Settings(sizes=(1000,), enumerate_n=14, array_n=128, law_probes=20_000),
}
