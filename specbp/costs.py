"""What the rows of the table of methods cost, and how they divide their probes.

Costs are products with A, as functions of the order n, the number of probes m, and the keyword
arguments; divisions are the keyword arguments for n and m.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from specbp.degree_laws import DegreeLaw, degree_law

Config = dict[str, Any]


def half_degree(_n: int, m: int, config: Config) -> float:
    """A Chebyshev or Taylor expansion: two moments a product."""
    return m * ((config["degree"] + 1) // 2)


def degree(_n: int, m: int, config: Config) -> float:
    """A recurrence that is differentiated, without doubling."""
    return m * config["degree"]


def steps(_n: int, m: int, config: Config) -> float:
    """Lanczos from every probe."""
    return m * config["num_steps"]


def algorithm1(n: int, m: int, config: Config) -> float:
    """The expansion, and the power method before it, which knows no end."""
    # Lanczos needs no more than n products for the bound.
    plain = config.get("safe") is False
    before = config["power_steps"] if plain else min(config["power_steps"], n)
    return half_degree(n, m, config) + before


def levels(_n: int, m: int, config: Config) -> Config:
    """A third of the probes for all steps, the others for a quarter of them."""
    fine, num_steps = (m + 2) // 3, config["num_steps"]
    coarse = min(max(1, num_steps // 4), num_steps - 1)
    return {"levels": ((coarse, m - fine), (num_steps, fine))}


def multilevel(n: int, m: int, config: Config) -> float:
    """Lanczos from every probe, for the steps of its level."""
    return sum(k * count for k, count in levels(n, m, config)["levels"])


def sketched(_n: int, m: int, config: Config) -> Config:
    """Half of the probes for the sketch."""
    return {**config, "num_sketch": m // 2}


def nystrom(n: int, m: int, config: Config) -> float:
    """The sketch, and Lanczos from the other probes."""
    return min(m // 2, n) + (m - m // 2) * config["num_steps"]


def captured(_n: int, m: int, config: Config) -> Config:
    """A quarter of the probes for the block."""
    return {**config, "num_block": max(1, m // 4)}


def krylov_aware(n: int, m: int, config: Config) -> float:
    """The blocks, as many as there is room for, and Lanczos from the other probes."""
    b, most = max(1, m // 4), config["block_steps"] + config["extra_steps"]
    return b * min(most, -(-n // b)) + (m - b) * config["num_steps"]


def krylov_aware_golub_kahan(n: int, m: int, config: Config) -> float:
    """The same on J, where the last step of the other probes is half a product."""
    return krylov_aware(n, m, config) - (m - max(1, m // 4)) / 2


def block(n: int, m: int, config: Config) -> float:
    """Block Lanczos from all probes, as long as there is room."""
    return m * min(config["num_steps"], -(-n // m))


def moments(_n: int, m: int, config: Config) -> float:
    """Chebyshev moments, two a product."""
    return m * ((config["num_moments"] + 1) // 2)


def hutchpp(n: int, m: int, _config: Config) -> float:
    """Every probe once, and once more the basis of the sketch of half of them."""
    return m + min(m // 2, n)


def random(_n: int, _m: int, _config: Config) -> float:
    """A number that depends on chance."""
    return math.nan


def law_of_degrees(_n: int, _m: int, config: Config) -> Config:
    """The law of the degree for the interval and the mean degree."""
    return {"law": degree_law(config["interval"], config["mean_degree"])}


def survival(*, law: DegreeLaw) -> Tensor:
    """P(N ≥ j) for j = 0 … max_degree."""
    return law.probabilities
