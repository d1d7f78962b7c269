"""P1–P3: wrong laws, shared and returning probes, and samplers that ignore their generator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from specbp import gaussian, generator_for, orthogonal, rademacher, sphere
from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, PASS
from verification.checks import law
from verification.checks.settings import Settings
from verification.subjects import from_method

SLQ, QR = (from_method(METHODS[name]) for name in ("slq", "qr"))
SAMPLERS = {
    "rademacher": rademacher,
    "gaussian": gaussian,
    "sphere": sphere,
    "orthogonal": orthogonal,
}


def verdicts(claim, subject):
    return {check.name: check.verdict for check in claim(subject, Settings())}


def drawing(draw, promised="rademacher"):
    """A subject whose sampler is `draw(n, m, generator, batch_shape)`."""

    def sampler(n, m, *, generator, batch_shape=(), dtype=torch.float64, device="cpu"):
        return draw(n, m, generator, tuple(batch_shape)).to(dtype=dtype, device=device)

    return replace(SLQ, sampler=sampler, law=promised)


def signs(n, m, generator, batch=()):
    return rademacher(n, m, generator=generator, batch_shape=batch)


@pytest.mark.parametrize("name", SAMPLERS)
def test_laws_of_the_library_pass(name):
    subject = replace(SLQ, sampler=SAMPLERS[name], law=name)
    for claim in law.CHECKS:
        assert set(verdicts(claim, subject).values()) == {PASS}


@pytest.mark.parametrize("drawn", ["gaussian", "sphere"])
def test_another_law_than_promised_is_seen(drawn):
    assert verdicts(law.law, replace(SLQ, sampler=SAMPLERS[drawn]))["P1 support"] == FAIL


def biased(n, m, generator, batch):
    uniform = torch.rand((*batch, n, m), generator=generator, dtype=torch.float64)
    return (2 * (uniform < 0.51) - 1).double()


def test_a_biased_coin_is_seen():
    assert verdicts(law.law, drawing(biased))["P1 pooled mean"] == FAIL


def test_blocks_that_are_not_orthogonal_are_seen():
    found = verdicts(law.law, replace(SLQ, sampler=sphere, law="orthogonal"))
    assert found.pop("P1 orthogonal") == FAIL
    assert set(found.values()) == {PASS}


def shared(n, m, generator, batch):
    return signs(n, m, generator).expand(*batch, n, m)


def antithetic(n, m, generator, batch):
    half = signs(n, m // 2, generator, batch)
    return torch.cat([half, -half], -1)


def frozen_calls(n, m, generator, batch):
    return signs(n, m, generator_for("seed", generator.initial_seed()), batch)


@pytest.mark.parametrize(
    ("draw", "scope"),
    [
        (shared, "across items"),
        (antithetic, "within one block"),
        (frozen_calls, "across calls"),
        (lambda n, m, _generator, batch: signs(n, m, generator_for("0"), batch), "across seeds"),
    ],
)
def test_probes_that_return_are_seen_where_they_return(draw, scope):
    found = verdicts(law.duplicates, drawing(draw))
    assert found[f"P2 duplicates {scope}"] == FAIL


def periodic(n, m, generator, batch):
    seed = int(torch.randint(5, (), generator=generator))
    return signs(n, m, generator_for("period", seed), batch)


def global_draw(n, m, _generator, batch):
    bits = np.random.randint(2, size=(*batch, n, m))  # noqa: NPY002
    return torch.from_numpy(2.0 * bits - 1)


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (periodic, "P3 seeds"),
        (global_draw, "P3 same seed"),
        (global_draw, "P3 global state"),
        (lambda n, m, _generator, batch: signs(n, m, generator_for("0"), batch), "P3 new seed"),
    ],
)
def test_samplers_that_are_no_function_of_their_generator_are_seen(draw, name):
    assert verdicts(law.reproducible, drawing(draw))[name] == FAIL


def test_methods_without_probes_have_no_law():
    assert [verdicts(claim, QR) for claim in law.CHECKS] == [{}, {}, {}]


def test_a_law_nobody_knows_is_refused():
    (check,) = law.law(replace(SLQ, law="uniform"), Settings())
    assert check.verdict == FAIL
    assert "law must be one of" in check.message
