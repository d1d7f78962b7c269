"""The law of blocks: correct samplers pass at the stated rate, and every planted fault is found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.fft import dct
from scipy.linalg import hadamard

from specbp import generator_for
from specbp.probes import LAWS as SAMPLERS
from specbp.testing import block_laws
from specbp.testing.block_laws import BLOCK_LAWS, block_law_checks
from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, Level

LEVEL = Level(alpha=1e-3, margin=0.2)
R, N, M = 2000, 64, 4
each_law = pytest.mark.parametrize("law", BLOCK_LAWS)


def draw(law: str, count: int = R, n: int = N, m: int = M) -> torch.Tensor:
    key = generator_for("block laws", law, n, m)
    return SAMPLERS[law](n, m, generator=key, batch_shape=(count,))


def failures(blocks: torch.Tensor, law: str, **options: bool) -> set[str]:
    checks = block_law_checks(blocks, law, LEVEL, **options)
    return {check.name.removeprefix("P1 ") for check in checks if check.verdict == FAIL}


def test_every_law_of_dependent_probes_is_judged():
    assert set(SAMPLERS) == {"rademacher", "gaussian", "sphere", *BLOCK_LAWS}


@each_law
@pytest.mark.parametrize("n", [N, 45, 100])
def test_the_right_law_passes_with_power_to_spare(law, n):
    blocks = draw(law, count=2400, n=N if law == "hadamard" else n)
    checks = block_law_checks(blocks, law, LEVEL)
    assert {check.verdict for check in checks} == {PASS}
    assert failures(blocks.float(), law) == set()


@each_law
@pytest.mark.parametrize(("n", "m"), [(8, 4), (7, 2), (16, 16)])
def test_false_alarms_do_not_exceed_the_stated_rate(law, n, m):
    """100 lists at level 0.05: at most 0.05 + 0.08 with probability 1 - 5e-4."""
    n = 8 if law == "hadamard" and n == 7 else n
    sampler, key = SAMPLERS[law], generator_for("size", law, n, m)
    blocks = sampler(n, m, generator=key, batch_shape=(100, 150))
    level = Level(alpha=0.05, margin=math.inf)
    alarms = [any(c.verdict == FAIL for c in block_law_checks(x, law, level)) for x in blocks]
    assert np.mean(alarms) <= 0.13


@pytest.mark.parametrize("twins", [False, True])
def test_frequencies_keep_their_level_in_both_directions(twins):
    """1000 χ² tests at 0.05: 0.05 ± 0.025 with probability 1 - 3e-4."""
    rng, ways, level = np.random.default_rng(2), np.ones(12), Level(alpha=0.05, margin=math.inf)
    index = rng.random((1000, 150, 12)).argsort(-1)[..., :5]
    if twins:
        index[index == 6] = 0
        ways[[0, 6]] = 2, 0
    found = [[c.verdict == FAIL for c in block_laws._indices(i, ways, level)] for i in index]
    assert np.abs(np.mean(found, axis=0) - 0.05).max() < 0.025


# Faults -------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
SIGNS = RNG.choice([-1.0, 1.0], (R, 1, N))
POPULATION = {
    "hadamard": hadamard(N).astype(float),
    "mixed_unit": math.sqrt(N) * dct(np.eye(N), axis=0, norm="ortho"),
    "unit_vector": math.sqrt(N) * np.eye(N),
}


def chosen(law: str, index: np.ndarray, D: np.ndarray | float = SIGNS) -> torch.Tensor:
    """Blocks of the rows `index` (R, M) of a population, with signs D; unit vectors have none."""
    return torch.from_numpy((D if law != "unit_vector" else 1.0) * POPULATION[law][index]).mT


def fresh(size: int = N) -> np.ndarray:
    """Indices below `size` without replacement."""
    return RNG.random((R, size)).argsort(1)[:, :M]


def first_columns() -> np.ndarray:
    return np.tile(np.arange(M), (R, 1))


def neighbours() -> np.ndarray:
    return (RNG.integers(N, size=(R, 1)) + np.arange(M)) % N


def with_replacement() -> np.ndarray:
    return RNG.integers(N, size=(R, M))


@pytest.mark.parametrize(
    ("law", "blocks", "found"),
    [
        *((law, lambda law=law: chosen(law, fresh()), set()) for law in POPULATION),
        *(
            (law, lambda law=law: chosen(law, with_replacement()), {"orthogonal"})
            for law in POPULATION
        ),
        ("hadamard", lambda: chosen("hadamard", fresh(), 1.0), {"coordinate mean"}),
        ("hadamard", lambda: chosen("hadamard", fresh(), SIGNS[0]), {"coordinate mean"}),
        ("hadamard", lambda: chosen("hadamard", first_columns()), {"products"}),
        ("hadamard", lambda: chosen("hadamard", neighbours()), {"products"}),
        ("hadamard", lambda: draw("rademacher"), {"orthogonal"}),
        ("hadamard", lambda: draw("hadamard") / math.sqrt(N), {"support", "orthogonal"}),
        ("mixed_unit", lambda: chosen("mixed_unit", fresh(), 1.0), {"coordinate mean"}),
        ("mixed_unit", lambda: chosen("mixed_unit", fresh(), SIGNS[0]), {"coordinate mean"}),
        ("mixed_unit", lambda: draw("mixed_unit") / math.sqrt(N), {"support", "orthogonal"}),
        ("mixed_unit", lambda: draw("unit_vector"), {"support"}),
        ("mixed_unit", lambda: draw("orthogonal"), {"support"}),
        ("mixed_unit", lambda: chosen("mixed_unit", fresh(N // 2)), {"frequencies"}),
        ("mixed_unit", lambda: chosen("mixed_unit", neighbours()), {"differences"}),
        ("unit_vector", lambda: draw("unit_vector") / math.sqrt(N), {"support", "orthogonal"}),
        ("unit_vector", lambda: draw("hadamard"), {"support"}),
        ("unit_vector", lambda: chosen("unit_vector", fresh(N - 12)), {"frequencies"}),
        ("unit_vector", lambda: chosen("unit_vector", neighbours()), {"differences"}),
        ("orthogonal", lambda: draw("sphere"), {"orthogonal"}),
        ("orthogonal", lambda: draw("unit_vector"), {"fourth moment"}),
    ],
)
def test_planted_faults_of_populations_are_found(law, blocks, found):
    assert failures(blocks(), law) >= found
    assert bool(failures(blocks(), law)) == bool(found)


def pairs(s: np.ndarray, x: np.ndarray | None = None) -> torch.Tensor:
    """Blocks of two pairs (x, s∘x) from s (R, 2, n) and fresh x."""
    x = RNG.choice([-1.0, 1.0], s.shape) if x is None else x
    rows = np.stack([x, s * x], axis=-2).reshape(len(s), 4, s.shape[-1])
    return torch.from_numpy(rows).mT


def balanced(n: int = N, minus: int | None = None) -> np.ndarray:
    place = RNG.random((R, 2, n)).argsort(-1)
    return np.where(place < (n // 2 if minus is None else minus), -1.0, 1.0)


HALVES = np.where(np.arange(N) < N // 2, -1.0, 1.0)


@pytest.mark.parametrize(
    ("blocks", "found"),
    [
        (lambda: pairs(balanced()), set()),
        (lambda: pairs(RNG.choice([-1.0, 1.0], (R, 2, N))), {"balance"}),
        (lambda: pairs(balanced(minus=N // 2 - 1)), {"balance"}),
        (lambda: pairs(np.full((R, 2, N), -1.0)), {"balance"}),
        (lambda: pairs(np.broadcast_to(HALVES, (R, 2, N))), {"s mean", "products"}),
        (lambda: pairs(HALVES * RNG.choice([-1.0, 1.0], (R, 2, 1))), {"products"}),
        (lambda: pairs(balanced(45, 22)), {"balance mean"}),
        (lambda: pairs(balanced(), np.ones((R, 2, N))), {"coordinate mean", "pooled mean"}),
        (lambda: draw("antithetic") / math.sqrt(N), {"support"}),
    ],
)
def test_planted_faults_of_pairs_are_found(blocks, found):
    assert failures(blocks(), "antithetic") >= found
    assert bool(failures(blocks(), "antithetic")) == bool(found)


@each_law
def test_blocks_that_are_not_finite_fail(law):
    blocks = draw(law, count=10)
    blocks[3, 2, 1] = math.nan
    assert failures(blocks, law) == {"support"}


@each_law
def test_normalised_blocks_are_judged_up_to_scale(law):
    blocks = draw(law) / math.sqrt(N)
    assert "support" in failures(blocks, law)
    assert failures(blocks, law, up_to_scale=True) == set()


@each_law
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("m", [1, 2, 4])
def test_the_smallest_blocks_are_judged(law, n, m):
    possible = m % 2 == 0 if law == "antithetic" else m <= n and (law != "hadamard" or n != 3)
    if possible:
        assert failures(draw(law, count=400, n=n, m=m), law) == set()


@pytest.mark.parametrize("law", ["mixed_unit", "unit_vector"])
def test_too_few_blocks_cannot_say(law):
    checks = {c.name: c.verdict for c in block_law_checks(draw(law, count=40), law, LEVEL)}
    assert checks["P1 frequencies"] == checks["P1 differences"] == INCONCLUSIVE
    assert checks["P1 support"] == PASS


def test_the_detectable_deviation_is_seen_with_the_stated_probability():
    """200 trials of random frequencies of the stated size: 0.95 is at least 0.89 in them."""
    rng, n, total = np.random.default_rng(1), 50, 5000
    level, chances = Level(alpha=1e-3, margin=math.inf), np.full(n, 1 / n)

    def judged(p: np.ndarray) -> object:
        return block_laws._frequencies("f", "", rng.multinomial(total, p), chances, 1.0, level)

    direction = rng.standard_normal((200, n))
    direction -= direction.mean(1, keepdims=True)
    direction /= np.sqrt((direction**2).mean(1, keepdims=True))
    found = [judged((1 + judged(chances).detectable * d) / n).verdict == FAIL for d in direction]
    assert 0.89 <= np.mean(found) < 1


def test_laws_and_shapes_are_checked():
    with pytest.raises(ValueError, match="law must be one of .*'hadamard'.* got 'rademacher'"):
        block_law_checks(draw("rademacher"), "rademacher", LEVEL)
    with pytest.raises(ValueError, match=r"\(R, n, m\) with R ≥ 2, got shape \(64, 4\)"):
        block_law_checks(draw("hadamard")[0], "hadamard", LEVEL)
    with pytest.raises(ValueError, match=r"m even, got shape \(2000, 64, 3\)"):
        block_law_checks(draw("rademacher", m=3), "antithetic", LEVEL)
