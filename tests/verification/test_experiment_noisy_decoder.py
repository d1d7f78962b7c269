"""Models, grid and report of the experiment on noisy decoders."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from specbp import Jacobian, generator_for, qr_logdet
from verification.experiments import ais, noisy_decoder, noisy_models, noisy_verdict

f64 = torch.float64


def normal(*shape, key="draws"):
    return torch.randn(shape, generator=generator_for("decoder tests", key), dtype=f64)


def test_closed_form_of_the_linear_decoder():
    f = noisy_models.Linear(2, 4)
    x = normal(2, 4, key="x")
    exact = f.log_evidence(x, 0.3)
    L = f.matrix.detach()
    law = stats.multivariate_normal(np.zeros(4), (L @ L.mT).numpy() + 0.09 * np.eye(4))
    np.testing.assert_allclose(exact, law.logpdf(x.numpy()))
    precision = torch.eye(2, dtype=f64) + L.mT @ L / 0.09
    mean = f.posterior(x, 0.3, torch.zeros(2, 1, 2, dtype=f64))
    torch.testing.assert_close(mean[:, 0], torch.linalg.solve(precision, (x @ L).mT / 0.09).mT)
    root = f.posterior(x, 0.3, torch.eye(2, dtype=f64).expand(2, 2, 2)) - mean
    torch.testing.assert_close(root[0].mT @ root[0], torch.linalg.inv(precision))


@pytest.mark.parametrize("sigma", [2.0, 0.1, 1e-3])
def test_grid_reaches_the_closed_form(sigma):
    f = noisy_models.Linear(2, 4)
    x = f(normal(1, 2, key="grid")).detach()
    found = noisy_models.grid_log_evidence(f, x[0], sigma, f.lipschitz())
    assert found == pytest.approx(float(f.log_evidence(x, sigma)), abs=1e-10)


@pytest.mark.parametrize("make", [noisy_models.Fold, lambda: noisy_models.InjectiveNet(2, 3)])
def test_grid_is_that_of_all_cells(make):
    f, sigma = make(), 0.25
    x = f(normal(1, 2, key="cells")).detach()[0]
    tick = torch.linspace(-8, 8, 401, dtype=f64)
    z = torch.cartesian_prod(tick, tick)
    residual = (f(z).detach() - x).square().sum(-1)
    value = noisy_models.log_prior(z) - residual / (2 * sigma**2)
    value = value - 1.5 * math.log(2 * math.pi * sigma**2)
    brute = float(value.logsumexp(0)) + 2 * math.log(0.04)
    found = noisy_models.grid_log_evidence(f, x, sigma, f.lipschitz())
    assert found == pytest.approx(brute, abs=1e-9)


def test_grid_says_when_it_is_too_large(monkeypatch):
    monkeypatch.setattr(noisy_models, "MAX_CELLS", 100)
    f = noisy_models.Linear(2, 4)
    with pytest.raises(MemoryError, match="at most 100"):
        noisy_models.grid_log_evidence(f, torch.zeros(4, dtype=f64), 0.1, f.lipschitz())


@pytest.mark.parametrize("sizes", [(2, 3), (2, 8), (8, 16)])
def test_networks_are_injective_and_lipschitz(sizes):
    f = noisy_models.InjectiveNet(*sizes)
    a, b = 3 * normal(2000, sizes[0], key="a"), 3 * normal(2000, sizes[0], key="b")
    b[:1000] = a[:1000] + 1e-3 * b[:1000]
    stretch = (f(a) - f(b)).detach().norm(dim=-1) / (a - b).norm(dim=-1)
    assert float(stretch.min()) > 0.1  # |A| is at least 1 and the rest bends by at most 0.9
    assert float(stretch.max()) < f.lipschitz()


def test_both_preimages_of_the_fold_have_one_image_and_one_metric():
    f, z = noisy_models.Fold(), normal(20, 2, key="fold")
    both = f.preimages(f.away(z))
    torch.testing.assert_close(f(both[:, 0]), f(both[:, 1]))
    assert float((both[:, 0] - both[:, 1]).abs().amin(0).amax()) >= 1
    metric = qr_logdet(Jacobian(f, both)).value
    torch.testing.assert_close(metric[:, 0], metric[:, 1])


# The experiment -----------------------------------------------------------------------------------

TINY = replace(
    noisy_decoder.QUICK,
    chains=16,
    temperatures=60,
    certified_temperatures=30,
    certified_sigmas=(0.3,),
    ladder_gradients=(40,),
    sigmas=(0.15, 0.02),
)


@pytest.fixture(scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ais, "MOVES", 3)
        return noisy_decoder.run(TINY, progress=False)


def test_the_limit_of_the_grid_is_the_formula_for_injective_maps(tiny):
    for model in ("linear 2→8", "net 2→3", "net 2→8"):
        for known in noisy_verdict.chosen(tiny, "formula", model=model):
            rows = noisy_verdict.chosen(tiny, "limit", model=model, point=known["point"])
            wide, narrow = (abs(r["grid"] - known["formula"]) for r in rows)
            assert narrow < 0.03
            assert narrow < wide / 10


def test_the_fold_is_off_by_the_share_of_its_preimage(tiny):
    for known in noisy_verdict.chosen(tiny, "formula", model=noisy_verdict.FOLD):
        grid = noisy_verdict.chosen(tiny, "limit", model=noisy_verdict.FOLD, point=known["point"])
        total = known["all_preimages"]
        assert total - known["formula"] > 0.1
        assert grid[-1]["grid"] == pytest.approx(total, abs=0.12)


def changed(records, kind, key, by, **keys):
    """The records with something added to an entry of some."""
    kept = noisy_verdict.chosen(records, kind, **keys)
    return [{**r, key: r[key] + by} if r in kept and r[key] is not None else r for r in records]


@pytest.mark.parametrize(
    ("kind", "key", "by", "keys"),
    [
        ("limit", "ais", 10, {"model": "net 2→3"}),
        ("limit", "closed", 1e-6, {}),
        ("limit", "grid", 0.01, {"model": "net 2→8"}),
        ("certificate", "lower", -10, {"model": "net 2→8"}),
        ("certificate", "upper", 10, {"model": "net 2→8"}),
        ("certificate", "upper", 40, {"model": "net 8→16"}),
        ("certificate", "lower", 40, {"model": "net 8→16"}),
    ],
)
def test_the_verdict_follows_the_numbers(tiny, kind, key, by, keys):
    assert noisy_verdict.judge(tiny, TINY.chains)["passed"]
    wrong = changed(tiny, kind, key, by, **keys)
    assert not noisy_verdict.judge(wrong, TINY.chains)["passed"]


def test_without_a_grid_the_limit_judges(tiny):
    """At the smallest noise; the others are far from the limit, as they may be."""
    name, known = "net 8→16", {}
    for r in noisy_verdict.chosen(tiny, "formula", model=name):
        known[r["point"]] = r["all_preimages"]

    def judged(*off):
        rows = noisy_verdict.chosen(tiny, "limit", model=name)
        by = dict(zip(sorted({r["sigma"] for r in rows}), off, strict=True))
        moved = [
            {**r, "ais": known[r["point"]] + by[r["sigma"]], "ais_error": 0.1} if r in rows else r
            for r in tiny
        ]
        return noisy_verdict.judge(moved, TINY.chains)["passed"]

    assert judged(0.1, 50.0)
    assert not judged(-5.0, 0.0)


def test_the_order_of_the_bounds_is_judged(tiny):
    """A forward estimate above the reverse one by many errors, each near a truth in between."""
    name = "forward − reverse, if positive"
    bounds = noisy_verdict.chosen(tiny, "certificate", model="net 2→8")
    crossed = [
        {
            **r,
            "lower": r["truth"] + 3 * r["lower_error"],
            "upper": r["truth"] - 3 * r["lower_error"],
        }
        | {"upper_error": r["lower_error"]}
        if r in bounds
        else r
        for r in tiny
    ]
    found = noisy_verdict.judge(crossed, TINY.chains)
    assert found["largest"][name] == pytest.approx(6 / 2**0.5)
    assert noisy_verdict.judge(tiny, TINY.chains)["largest"][name] < 4


def test_a_limit_that_is_not_reached_has_no_order(tiny):
    orders = noisy_verdict.judge(tiny, TINY.chains)["orders"]
    assert set(orders) == {"linear 2→8", "net 2→3", "net 2→8"}
    assert all(1.8 < value < 2.2 for value in orders.values())
    off = changed(tiny, "formula", "all_preimages", 0.1)
    assert abs(noisy_verdict.order(off, "net 2→3")) < 0.5


def test_the_command_writes_a_page_its_figures_and_its_numbers(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(noisy_decoder, "run", lambda _: tiny)
    assert noisy_decoder.main(["--quick", "--out", str(tmp_path / "new")]) == 0
    names = {p.name for p in (tmp_path / "new").iterdir()}
    assert names == {"README.md", "results.json", "limit.png", "values.png", "certificate.png"}
    records = json.loads((tmp_path / "new" / "results.json").read_text(encoding="utf-8"))
    assert records[0]["kind"] == "provenance"
    assert records[-1]["kind"] == "verdict"
    page = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert "**Passed.**" in page
    assert page.count("| net 8→16 |") == 1 + len(TINY.certified_sigmas)
