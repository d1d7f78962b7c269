"""Preimages of maps of the plane: exact triangles, Newton's method, errors and masses."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close

from specbp import generator_for
from specbp.models import BottleneckResNet
from verification.experiments import newton, preimages, preimages_verdict, triangulation
from verification.experiments.preimages_maps import KNOWN
from verification.experiments.preimages_study import (
    Cover,
    errors,
    integrates_to_one,
    log_densities,
    log_prior,
    mass_of_inverse,
    prior_outside,
    study,
)
from verification.experiments.triangulation import (
    Preimages,
    affine_triangulation,
    grid_triangulation,
    winding_number,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")

CELLS = 80


def network(seed: int = 0, hidden: int = 5, blocks: int = 2, scale: float = 2.0):
    """A small network with weights so large that it folds the plane."""
    f = BottleneckResNet(2, hidden, blocks, generator=generator_for("preimages test", seed))
    with torch.no_grad():
        for parameter in f.parameters():
            parameter.mul_(scale)
    return f.double().requires_grad_(False)


def draws(num: int, *key: object) -> torch.Tensor:
    return torch.randn(num, 2, generator=generator_for("draws", *key), dtype=torch.float64)


def naive_preimages(cover: triangulation.Triangulation, x: torch.Tensor) -> list[np.ndarray]:
    """Solve x = A z + b on every triangle, one after the other."""
    found = []
    for z, y in zip(cover.corners.numpy(), cover.images.numpy(), strict=True):
        edges, images = (z[1:] - z[0]).T, (y[1:] - y[0]).T
        if abs(np.linalg.det(images)) > 1e-12:
            s, t = np.linalg.solve(images, x.numpy() - y[0])
            if s >= 0 and t >= 0 and s + t <= 1:
                found.append(z[0] + edges @ np.array([s, t]))
    return found


def patterns(f: BottleneckResNet, z: torch.Tensor) -> torch.Tensor:
    """Signs of all neurons (m, neurons)."""
    signs = []
    for block in f.blocks:
        first = block.linear1(z)
        second = block.linear2(torch.nn.functional.leaky_relu(first, block.slope))
        signs += [first > 0, second > 0]
        z = block(z)
    return torch.cat(signs, -1)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_triangles_cover_the_square_and_no_neuron_changes_sign_within(seed):
    f = network(seed)
    cover = affine_triangulation(f, 3.0)
    assert (cover.areas > 0).all()
    assert float(cover.areas.sum()) == pytest.approx(36, rel=1e-10)
    weight = torch.rand(len(cover.corners), 3, generator=generator_for(seed)).double() + 0.01
    weight = (weight / weight.sum(1, keepdim=True)).unsqueeze(-1)
    inner = (weight * cover.corners).sum(1)
    large = cover.areas > 1e-8  # in thinner ones rounding decides on which side a point is
    assert torch.equal(patterns(f, inner)[large], patterns(f, cover.corners.mean(1))[large])
    assert_close(f(inner), (weight * cover.images).sum(1), rtol=0, atol=1e-11)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_located_preimages_are_those_of_a_loop_over_triangles(seed):
    f = network(seed, hidden=4)
    cover = affine_triangulation(f, 3.0)
    x = f(draws(4, seed))
    found = cover.locate(x)
    assert_close(f(found.z), x[found.point], rtol=0, atol=1e-9)
    for i, expected in enumerate(naive_preimages(cover, point) for point in x):
        own = found.z[found.point == i].numpy()
        assert len(own) == found.count[i] == len(expected)
        gaps = np.linalg.norm(own[:, None] - np.array(expected)[None], axis=-1)
        assert gaps.min(0).max() < 1e-9


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_determinants_signs_add_up_to_the_winding_number(seed):
    f = network(seed)
    cover = affine_triangulation(f, 3.0)
    low, high = cover.images.flatten(0, 1).aminmax(dim=0)
    x = low + (high - low) * torch.rand(300, 2, generator=generator_for(seed)).double()
    assert torch.equal(cover.locate(x).degree, winding_number(cover.boundary(), x))


def test_winding_number_of_a_circle_run_twice_and_backwards():
    angle = torch.arange(100, dtype=torch.float64) * (4 * math.pi / 100)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    x = torch.tensor([[0.0, 0.0], [0.5, -0.5], [2.0, 0.0]], dtype=torch.float64)
    assert winding_number(circle, x).tolist() == [2, 2, 0]
    assert winding_number(circle.flip(0), x).tolist() == [-2, -2, 0]


def test_points_of_many_parts_keep_their_order(monkeypatch):
    cover, x = affine_triangulation(network(), 3.0), network()(draws(50, "order"))
    whole = cover.locate(x)
    monkeypatch.setattr(triangulation, "BATCH", 7)
    parts = cover.locate(x)
    assert torch.equal(parts.count, whole.count)
    assert_close(parts.log_sum(log_prior(parts.z)), whole.log_sum(log_prior(whole.z)))
    assert cover.locate(x[:0]).count.tolist() == []


def test_sums_over_preimages():
    point = torch.tensor([0, 2, 2])
    found = Preimages(3, point, torch.zeros(3, 2), torch.tensor([1.0, -2.0, 3.0]).double())
    terms = torch.tensor([-1000.0, 1.0, 2.0], dtype=torch.float64)
    total = [-1000, -math.inf, math.log(math.e + math.e**2)]
    assert found.log_sum(terms).tolist() == pytest.approx(total)
    assert found.log_max(terms).tolist() == [-1000, -math.inf, 2]
    assert found.count.tolist() == [1, 0, 2]
    assert found.degree.tolist() == [1, 0, 0]


@pytest.mark.parametrize("name", KNOWN)
def test_the_known_preimages_are_all_there_are(name):
    known = KNOWN[name]
    z = draws(200, name)
    x = known.f(z)
    roots = known.preimages(x)
    there = roots.isfinite().all(-1)
    target = x.unsqueeze(1).expand_as(roots)[there]
    assert_close(known.f(roots[there]), target, rtol=1e-9, atol=1e-9)
    assert (
        (torch.linalg.vector_norm(roots - z.unsqueeze(1), dim=-1).nan_to_num(9) < 1e-6).any(1).all()
    )
    slope = {"fold": lambda b: -1.0, "cusp": lambda b: b}.get(name)
    if slope is not None:
        for (x1, x2), count in zip(x.tolist(), known.count(x).tolist(), strict=True):
            found = np.roots([1, 0, slope(x2), -x1])
            assert (abs(found.imag) < 1e-9).sum() == count


@pytest.mark.parametrize("name", KNOWN)
def test_study_of_a_known_map(name):
    known = KNOWN[name]
    z = draws(300, "study", name)
    cover = Cover(known.f, cells=CELLS)
    found = study(cover, z, newton=8)
    found |= preimages.against_known(known, cover, z)
    assert preimages_verdict.sound(found)
    assert found["known_log_p"] < 1e-6
    assert found["newton_agrees"] == 1
    assert found["error_q0.5"] <= found["error_q0.9"] <= found["error_q1"]
    count = known.count(known.f(z)).double()
    assert found["mean_count"] == float(count.mean())
    assert found["share_several"] == float((count > 1).double().mean())
    assert found["log_p_all"] - found["log_p_one"] == pytest.approx(found["error_mean"])
    if name in ("square", "mirror"):  # two preimages that weigh the same
        assert errors(cover, z).tolist() == pytest.approx([math.log(2)] * len(z), abs=1e-7)
        assert found["counts"] == [0, 0, len(z)]


def test_closed_form_densities():
    """|z1| is half normal; the square of a complex normal has p(x) = exp(-|x|/2) / (4 pi |x|)."""
    x = draws(50, "closed").abs()
    density = log_densities(Cover(KNOWN["mirror"].f), x)[0]
    assert_close(density, log_prior(x) + math.log(2), rtol=1e-9, atol=1e-9)
    r = torch.linalg.vector_norm(x, dim=-1)
    density = log_densities(Cover(KNOWN["square"].f, cells=CELLS), x)[0]
    assert_close(density, -r / 2 - (4 * math.pi * r).log(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2])
def test_newton_finds_nothing_beyond_what_is_located(seed):
    found = study(network(seed), draws(200, "newton"), newton=20, starts=12)
    assert preimages_verdict.sound(found)
    assert found["newton_agrees"] > 0.8
    assert found["misfit"] < 1e-11


def test_all_preimages_integrate_to_one_and_a_single_one_does_not():
    found = integrates_to_one(KNOWN["mirror"].f, draws(4000, "one"), cells=80)
    (a, b), (c, d) = found["box"]
    normal = [math.erf(t / 2**0.5) for t in (a, b, c, d)]
    exact = (normal[1] - normal[0]) * (normal[3] - normal[2]) / 2
    assert found["all"] == pytest.approx(exact, abs=5e-4)
    assert abs(found["mass"] - exact) < 8 * found["mass_se"]
    assert abs(found["one"] - found["one_expected"]) < 6 * found["one_expected_se"]
    assert found["one"] == pytest.approx(found["all"] / 2)


def test_a_folding_network_integrates_to_one():
    found = integrates_to_one(network(1), draws(4000, "one"), cells=150)
    assert abs(found["all"] - found["mass"]) < 8 * (found["all_se"] + found["mass_se"])
    assert abs(found["one"] - found["one_expected"]) < 6 * (
        found["one_se"] + found["one_expected_se"]
    )
    assert found["one"] < 0.95 * found["mass"]


@pytest.mark.parametrize("name", ["mirror", "fold"])
def test_the_inverse_direction_has_the_mean_number_of_preimages_as_mass(name):
    cover = Cover(KNOWN[name].f, cells=CELLS)
    found = mass_of_inverse(cover, draws(1000, "mass"), cells=150)
    gap = abs(found["inverse_mass"] - found["inverse_count"])
    assert gap < 6 * math.hypot(found["inverse_mass_se"], found["inverse_count_se"])
    exact = KNOWN[name].count(draws(100_000, "count")).double().mean()
    assert abs(found["inverse_mass"] - float(exact)) < 0.03


def test_an_interpolant_alone_is_not_trusted_near_a_fold():
    """Beside the fold, where the interpolant has no pair, widened triangles and Newton find it."""
    cover = grid_triangulation(KNOWN["fold"].f, 6.0, CELLS)
    edge = 2 / (3 * math.sqrt(3))  # the local maximum of z³ - z
    x = torch.tensor([[edge - 1e-4, 0.1], [edge + 1e-4, 0.1]], dtype=torch.float64)
    assert newton.polished(KNOWN["fold"].f, x, cover).count.tolist() == [3, 1]
    assert cover.locate(x).count.tolist() == [1, 1]


def test_draws_outside_the_square_are_left_out():
    z = torch.tensor([[0.5, 0.5], [7.0, 0.0]], dtype=torch.float64)
    assert study(KNOWN["mirror"].f, z.repeat(2, 1))["samples"] == 2
    assert prior_outside(1.0) == pytest.approx(1 - math.erf(2**-0.5) ** 2)
    assert prior_outside(6.0) == pytest.approx(2 * math.erfc(6 / 2**0.5), rel=1e-6)


def test_a_contradiction_is_not_sound():
    record = {"recovered": 1.0, "winding_agrees": 1.0, "newton_extra": 0}
    assert preimages_verdict.sound(record)
    for wrong in ({"recovered": 0.99}, {"winding_agrees": 0.5}, {"newton_extra": 1}):
        assert not preimages_verdict.sound(record | wrong)
    assert not preimages_verdict.sound(record | {"known_count": 0.999})


def judged(**change: object) -> preimages_verdict.Record:
    """The verdict on two sound records of which the second is changed."""
    record = {"name": "a", "recovered": 1.0, "winding_agrees": 1.0, "newton_extra": 0}
    gaps = {f"{key}_gap": 0.1 for key in ("all", "one", "inverse")}
    gaps |= {f"{key}_gap_se": 0.1 for key in ("all", "one", "inverse")}
    record |= {"repeats": 8, "point_mass": 1e-3, **gaps}
    return preimages_verdict.verdict([record, record | {"name": "b"} | change])


def test_the_verdict_is_that_of_student():
    found = judged()
    assert found["passed"]
    assert found["comparisons"] == 6
    assert found["limit"] == pytest.approx(stats.t.ppf(1 - 1e-3 / 12, 7))
    for key in ("all", "one", "inverse"):
        found = judged(**{f"{key}_gap": -0.1 * found["limit"] * 1.01})
        assert not found["passed"]
        assert found["worst"] == f"b, {key}"
    assert not judged(recovered=0.99)["passed"]
    unresolved = judged(point_mass=0.5, all_gap=100.0)
    assert unresolved["passed"]
    assert unresolved["unresolved"] == ["b"]
    assert not judged(point_mass=0.5, inverse_gap=100.0)["passed"]


def test_a_lost_preimage_is_seen_in_the_integral():
    """With one of the two preimages of the mirror alone, half of the mass is missing."""
    found = integrates_to_one(KNOWN["mirror"].f, draws(4000, "one"), cells=80)
    assert abs(preimages_verdict.score(found, "all")) < 10
    assert abs(preimages_verdict.score(found, "one")) < 10
    lost = found | {"all_gap": found["one"] - found["mass"]}
    assert abs(preimages_verdict.score(lost, "all")) > 50


def test_the_command_of_a_page_names_its_checkpoints():
    options = argparse.Namespace(quick=False, checkpoints=preimages.ROOT / "a" / "b")
    assert preimages._command(options).endswith("preimages --checkpoints a/b")


def test_bad_input(tmp_path):
    with pytest.raises(TypeError, match="need a BottleneckResNet with dim=2"):
        affine_triangulation(BottleneckResNet(3, generator=generator_for("bad")), 1.0)
    with pytest.raises(SystemExit, match=r"folder with state_dicts"):
        list(preimages._checkpoints(tmp_path))


@pytest.fixture
def small(monkeypatch) -> None:
    """The program on the mirror and two small networks."""
    monkeypatch.setattr(
        preimages, "_known", lambda: [("mirror", preimages.KNOWN_GROUP, KNOWN["mirror"])]
    )
    monkeypatch.setattr(
        preimages,
        "_untrained",
        lambda seeds: [(f"scale {s:g}, seed 0", f"scale {s:g}", network(scale=s)) for s in (1, 2)],
    )


@pytest.mark.usefixtures("small")
def test_the_program_writes_what_it_measured(tmp_path: Path, monkeypatch):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    torch.save(network(3).state_dict(), checkpoints / "step0.pt")
    monkeypatch.setattr(
        preimages, "BottleneckResNet", lambda generator: network(4)
    )  # of the size saved
    out = tmp_path / "out"
    options = argparse.Namespace(out=out, quick=True, checkpoints=checkpoints)
    assert preimages.main(options) == 0
    run, *records = json.loads((out / "results.json").read_text())
    assert run["samples"] == 400
    unresolved = run["verdict"]["unresolved"]  # by so few points
    assert run["verdict"]["comparisons"] == 3 * 4 - 2 * len(unresolved)
    assert set(unresolved) <= {"step0"}
    assert run["verdict"]["passed"]
    assert [r["name"] for r in records] == ["mirror", "scale 1, seed 0", "scale 2, seed 0", "step0"]
    z = preimages._draws("step0", 400)
    assert records[-1]["error_mean"] == study(network(3), z)["error_mean"]
    page = (out / "README.md").read_text()
    assert f"{records[-1]['error_mean']:.3f}" in page
    assert f"{records[0]['all']:.4f} ± {records[0]['all_se']:.4f}" in page
    assert {p.name for p in out.glob("*.png")} == {"map.png", "errors.png"}
