"""The study of gradients: its truth, its meter of memory, its statistics, its report."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.testing import assert_close

from specbp import generator_for, rademacher
from verification.experiments import gradients
from verification.experiments.gradients_cases import Linearised, case, dot, exact_gradient, jacobian
from verification.experiments.gradients_cost import SavedTensors, Task, memory
from verification.experiments.gradients_derived import best, shapes
from verification.experiments.gradients_estimators import (
    BLOCK,
    COST,
    EXACT,
    NOISE,
    PAPER,
    PAPERS,
    PLAIN,
    Estimator,
    golub_kahan,
)
from verification.experiments.gradients_findings import findings, left_out
from verification.experiments.gradients_goals import compared, least, lowest, only, paper_with
from verification.experiments.gradients_noise import check, measure, solves, untruncated

ROWS = {row.name: row for row in NOISE}


@pytest.fixture(scope="module")
def small():
    return case("dcgan-z16", "init", 6)


@pytest.mark.parametrize("variables", ["parameters", "point"])
def test_exact_gradient_agrees_with_differences_along_every_direction(variables):
    known = case("dcgan-z16", "digits", 2, variables)
    for direction, slope in zip(known.directions, known.exact, strict=True):
        values = []
        for step in (-1e-6, 1e-6):
            moved = case_value(known, direction, step)
            values.append(moved)
        assert_close((values[1] - values[0]) / 2e-6, slope, rtol=2e-4, atol=1e-3)


def case_value(known, direction, step):
    """log det JᵀJ a step away, the network left as it was."""
    z = known.z + step * direction.get("", 0)
    parameters = dict(known.f.named_parameters())
    shifts = {k: step * d for k, d in direction.items() if k}
    with torch.no_grad():
        for name, shift in shifts.items():
            parameters[name] += shift
        value = torch.linalg.svdvals(jacobian(known.f, z).dense()[0]).log().sum() * 2
        for name, shift in shifts.items():
            parameters[name] -= shift
    return value


def test_a_gradient_that_is_zero_is_refused():
    with pytest.raises(ValueError, match="nothing is relative to 0"):
        case("bottleneck-d2", "init", 2, "point")  # piecewise linear


def test_two_sides_of_every_check_agree(small):
    found = check(small)
    assert max(found["linearised"], found["adjoint"], found["dense"]) < 1e-11
    assert found["std_by_directions"] == pytest.approx(found["std_of_all"], rel=0.4)


def test_probes_that_resolve_the_identity_have_the_exact_gradient_as_their_mean(small):
    n = len(small.R)
    rows = math.sqrt(n) * torch.eye(n, dtype=torch.float64)
    assert_close(untruncated(small, rows.unsqueeze(-1)).mean(0), small.exact)
    J = Linearised(small.R, small.slopes, n)
    probes = rows.unsqueeze(-1)
    value = golub_kahan(J, probes, n, small.interval, generator_for("none")).value.sum()
    (found,) = torch.autograd.grad(value, J.alpha)
    assert_close(found, untruncated(small, probes), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("limit", ["log", "inverse"])
def test_every_limit_has_the_exact_gradient_as_its_mean(small, limit):
    n = len(small.R)
    rows = math.sqrt(n) * torch.eye(n, dtype=torch.float64)
    assert_close(untruncated(small, rows.unsqueeze(-1), limit).mean(0), small.exact)


def test_truncation_vanishes_where_steps_suffice_and_solves_have_their_own_limit(small):
    solved = measure(small, ROWS["solve, rtol 1e-6"], 1, 0, 40)
    lanczos = measure(small, ROWS["SLQ"], 1, 16, 40)
    assert max(r["truncation_std"] / r["sampling_std"] for r in (solved, lanczos)) < 1e-5
    assert solved["sampling_std"] > 1.01 * lanczos["sampling_std"]
    steps = [measure(small, ROWS["solve, cut off"], 1, k, 40)["truncation_std"] for k in (1, 4, 10)]
    assert steps[0] > 4 * steps[1] > 16 * steps[2]
    random = measure(small, ROWS["random degree"], 1, 4, 40)
    assert random["sampling_std"] is None
    assert random["truncation_std"] is None


def test_directions_estimate_the_norm_of_the_gradient():
    known = case("bottleneck-d2", "init", 120)
    assert float(known.exact.square().mean().sqrt()) == pytest.approx(known.norm, rel=0.2)
    gradient = exact_gradient(known.f, known.z)
    assert known.norm == pytest.approx(float(dot(gradient, gradient).sqrt()))


def test_noise_of_single_probes_predicts_that_of_many(small):
    row = ROWS["Golub–Kahan"]
    one, many = measure(small, row, 1, 4, 1500), measure(small, row, 9, 4, 1500)
    assert many["std"] == pytest.approx(one["std"] / 3, rel=0.06)
    assert one["bias"] == pytest.approx(many["bias"], abs=3 * (one["bias_error"]))
    assert one["std"] == pytest.approx(one["sampling_std"], rel=0.1)


def test_exact_row_has_neither_noise_nor_bias(small):
    found = measure(small, Estimator("exact", EXACT.estimate, independent=False), 4, 4, 8)
    assert max(found["std"], found["bias"], found["bias_error"]) < 1e-10


def test_truncation_is_a_bias_that_more_steps_remove(small):
    rows = [measure(small, ROWS[PAPER], 1, k, 200) for k in (1, 4, 16)]
    assert rows[0]["bias"] > 5 * rows[0]["bias_error"] > 0
    assert rows[0]["bias"] > 5 * rows[1]["bias"] > 25 * rows[2]["bias"]


def test_orthogonal_probes_that_fill_the_space_have_no_sampling_noise(small):
    row = ROWS["SLQ, orthogonal"]
    assert measure(small, row, 16, 16, 6)["std"] < 1e-5
    assert measure(small, row, 8, 16, 20)["std"] > 0.1


def test_a_tolerance_decides_the_products(small):
    coarse, fine = (measure(small, ROWS[f"solve, rtol {r}"], 1, 0, 20) for r in ("1e-2", "1e-6"))
    assert 2 < coarse["products"] < fine["products"] < 30
    rare = solves(small, 16, 1e-6)
    assert rare["block_cg"] <= 2 * 16 < rare["cg"]


def test_saved_tensors_count_storages_once_while_they_are_alive():
    x = torch.ones(1000, requires_grad=True)
    with SavedTensors([x]) as saved:
        y = x.exp()  # saves its result
        assert saved.alive == 4000
        z = y.sin() + y.cos()  # both save y again
        assert saved.alive == 4000
        w = z.exp().sum()  # z.exp() saves its own
        assert saved.alive == 8000
        (g,) = torch.autograd.grad(w, x, create_graph=True)
        assert saved.peak > 8000
        del y, z, w, g
        assert saved.alive == 0
        (x * x).sum().backward()  # nothing but x
    assert saved.alive == 0


def test_saved_tensors_leave_gradients_of_any_order_alone():
    x = torch.linspace(0.1, 1, 5, dtype=torch.float64, requires_grad=True)
    with SavedTensors():
        (first,) = torch.autograd.grad(x.sin().exp().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
    s, c = x.detach().sin(), x.detach().cos()
    assert_close(first.detach(), c * s.exp())
    assert_close(second, (c * c - s) * s.exp())


def test_memory_of_the_papers_way_grows_with_its_degree_and_of_others_less():
    task = Task.build("bottleneck-d64", "init", 4)
    grown = {
        row.name: memory(task, row, 40)["bytes"] / memory(task, row, 5)["bytes"] for row in COST
    }
    assert min(grown.pop(PAPER), grown.pop(PLAIN)) > 4
    assert max(grown.values()) < 1.1


def test_vectors_held_are_the_bases_that_grow_with_the_steps():
    task = Task.build("bottleneck-d64", "init", 4)
    rows = {row.name: row for row in COST}
    vector = 4 * 4 * 64  # bytes of one step of four probes
    for name in ("Golub–Kahan", "SLQ"):
        few, many = (memory(task, rows[name], k)["held"] for k in (10, 30))
        assert 20 * vector <= many - few < 1.1 * 20 * vector
        assert 10 * vector <= few < 1.2 * 10 * vector
    few, many = (memory(task, rows["Chebyshev adjoint"], k)["held"] for k in (10, 30))
    assert 10 * vector <= many - few < 1.1 * 10 * vector
    assert memory(task, rows[PAPER], 10)["held"] == 0


def record(**changes):
    common = {"kind": "noise", "label": "a", "estimator": "e", "rtol": None, "independent": True}
    numbers = {"probes": 1, "steps": 4, "products": 4, "std": 6.0, "bias": 0.5, "bias_error": 0.3}
    return common | numbers | changes


def test_shapes_share_the_products_among_probes():
    records = [
        record(),
        record(steps=100, products=100),  # not even one probe
        record(label="b"),
        record(independent=False, probes=9, products=36, std=1.0),
        record(independent=False, probes=8, products=32),  # other products
        record(rtol=0.1, steps=0, products=72),
    ]
    single, joint, solved = shapes(records, "a", 36)
    assert (single.probes, single.std, single.bias) == (9, 2.0, pytest.approx(0.4))
    assert single.rmse == pytest.approx(math.hypot(2, 0.4))
    assert (joint.probes, joint.std) == (9, 1.0)
    assert (solved.probes, solved.std) == (0.5, pytest.approx(6 * math.sqrt(2)))
    assert best([single, joint, solved]) is joint


def test_measurements_that_failed_are_no_shapes():
    records = [record(std=None), record(std=math.nan), record(std=math.inf), record(std=1.0)]
    assert [s.std for s in shapes(records, "a", 4)] == [1.0]
    assert left_out(records).count("e on a, 4 steps") == 1
    assert left_out([record()]) == ""


def test_goals_compare_at_equal_products_and_ask_for_less_error_than_no_gradient():
    paper = {"estimator": PAPER, "steps": PAPERS, "products": 40, "bias": 0, "bias_error": 0}
    block = paper | {"estimator": BLOCK, "independent": False, "probes": 2}
    records = [
        record(**paper, label="loud", n=60, std=9.0),
        record(**paper | {"steps": 1, "bias": 8.0}, label="loud", n=60, std=0.5),
        record(**block, label="loud", n=60, std=2.0),  # quieter, but no better than nothing
        record(**paper, label="calm", n=100, std=1.5),
        record(**block, label="calm", n=100, std=0.3),
        record(**paper, label="alone", n=100, std=1.5),
    ]
    loud, calm = compared(records, 40, "std", lowest(only(BLOCK)), paper_with(PAPERS))
    assert (loud.ratio, loud.dear, loud.meets(1 / 3)) == (pytest.approx(2 / 9), False, False)
    assert (calm.ratio, calm.dear, calm.meets(1 / 3)) == (pytest.approx(0.2), True, True)
    first, second = compared(records, 40, "rmse", lowest(only(BLOCK)), lowest(only(PAPER)))
    assert (first.zero, second.zero) == (
        pytest.approx(1 / math.hypot(8, 0.5)),
        pytest.approx(2 / 3),
    )
    quiet, _ = compared(records, 40, "std", lowest(only(BLOCK)), least(only(PAPER)))
    assert quiet.ratio == pytest.approx(4)


def test_untruncated_gradient_is_linear_in_the_outer_products(small):
    x = rademacher(16, 3, generator=generator_for("t"), batch_shape=(2,))
    each = torch.stack([untruncated(small, x[..., i : i + 1]) for i in range(3)])
    assert_close(untruncated(small, x), each.mean(0))


def test_quick_run_writes_a_page_of_its_own_records(tmp_path):
    gradients.main(["--quick", "--out", str(tmp_path)])
    provenance, *records = json.loads((tmp_path / "results.json").read_text())
    assert provenance["settings"]["most"] == gradients.QUICK.most
    page = (tmp_path / "README.md").read_text()
    for kind in ("memory", "time", "noise", "check", "solve"):
        assert any(r["kind"] == kind for r in records)
    for r in records:
        if r["kind"] == "memory":
            assert f"{r['bytes'] / 2**20:.3f}" in page
        if r["kind"] == "noise":
            assert r["label"] in page
    for name in ("memory.png", "time.png", "noise.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert findings(records) in page
    redrawn(tmp_path, page)


def redrawn(folder, page):
    """The page and figures come back from the JSON, with a note of a measurement that failed."""
    rows = json.loads((folder / "results.json").read_text())
    next(r for r in rows if r.get("estimator") == "random degree")["std"] = None
    (folder / "results.json").write_text(json.dumps(rows))
    (folder / "noise.png").unlink()
    gradients.main(["--redraw", "--out", str(folder)])
    found = (folder / "README.md").read_text()
    assert "left out: random degree on" in found
    assert found.split("## Noise and bias")[0] == page.split("## Noise and bias")[0]
    assert (folder / "noise.png").exists()
    assert not list(folder.glob(".*"))
