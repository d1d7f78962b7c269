"""The study at equal products believes no method: products are metered, seeds are fixed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from specbp import rademacher, slq_logdet
from specbp.estimate import without_probes
from tests.verification.budgets_fixture import (
    BASE,
    BUDGET,
    CASE,
    JACOBIAN,
    PERFECT,
    N,
    by_name,
    measured,
    study,
    target,
    tiny_cases,
    use,
)
from verification import budgets, budgets_accept, budgets_methods, budgets_report, budgets_run
from verification.__main__ import main
from verification.budgets_accept import Table
from verification.budgets_methods import Candidate, Meter, Variant
from verification.budgets_run import OverspentError, Settings

__all__ = ["tiny_cases"]  # a fixture of every test


# Products -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(N, 6), (3, N, 2), (6, N, 1), (2, 3, N, 1)])
def test_the_meter_counts_every_vector_in_whichever_dimension_it_hides(shape):
    meter = Meter(target().operators["A"])
    meter @ torch.ones(shape, dtype=torch.float64)
    assert meter.products("A") == 6


def test_a_product_with_a_factor_alone_is_a_half():
    meter = Meter(target().operators["J"])
    images = meter @ torch.ones(N, 3, dtype=torch.float64)
    assert meter.products("J") == 1.5
    meter.mT @ images
    assert meter.products("J") == 3


def test_measured_products_are_those_of_one_replicate_however_they_are_batched(monkeypatch):
    whole = measured(BASE)
    monkeypatch.setattr(budgets_run, "CHUNK", 1)
    single = measured(BASE)
    assert whole.products == single.products == BUDGET
    np.testing.assert_allclose(whole.errors, single.errors, rtol=1e-10, atol=1e-10)


def test_a_method_that_spends_more_than_the_budget_is_refused():
    greedy = Candidate("greedy", slq_logdet, "A", budgets_methods.steps)
    with pytest.raises(OverspentError, match="greedy 4x4 on spd/tiny used 16 products of 12"):
        measured(greedy, Variant("4x4", 4, {"num_steps": 4}))


def test_a_method_that_hides_products_in_a_second_call_is_refused():
    def twice(operator, probes, *, num_steps):
        slq_logdet(operator, probes, num_steps=1)
        return slq_logdet(operator, probes, num_steps=num_steps)

    with pytest.raises(OverspentError, match="reports 8 products and used 12"):
        measured(
            Candidate("twice", twice, "A", budgets_methods.steps), Variant("", 4, {"num_steps": 2})
        )


def test_a_method_that_hides_probes_in_the_batch_is_refused():
    def folded(operator, probes, *, num_steps):
        one_by_one = slq_logdet(operator, probes.mT.unsqueeze(-1), num_steps=num_steps)
        value = one_by_one.value.mean(-1)  # each item a single probe: "3 products"
        return without_probes(value, num_matvecs=3, status=torch.zeros_like(value).long())

    with pytest.raises(OverspentError, match="reports 3 products and used 12"):
        measured(Candidate("folded", folded, "A", budgets_methods.steps))


def test_a_method_that_may_overspend_is_shown_and_never_compared(monkeypatch):
    greedy = replace(PERFECT, bounded=False)
    cells = [measured(BASE), measured(greedy, Variant("4x4", 4, {"num_steps": 4}))]
    assert not cells[1].within
    assert budgets_accept.best_of_shapes(Table(cells), CASE) is None
    assert "!" in budgets_report.markdown(study(cells))


# Seeds --------------------------------------------------------------------------------------------


def probes(candidate=BASE, seeds=range(4), epoch="test"):
    return budgets_run.probes(CASE, candidate, budgets_methods.same_steps(CASE)[0], seeds, epoch)


def test_methods_of_one_law_meet_the_same_probes():
    assert torch.equal(probes(BASE), probes(PERFECT))
    assert not torch.equal(probes(BASE), probes(replace(BASE, law="gaussian")))


def test_probes_do_not_depend_on_how_many_replicates_there_are():
    assert torch.equal(probes(seeds=range(2, 4)), probes(seeds=range(8))[2:4])


def test_another_epoch_has_other_probes_and_so_has_another_seed():
    assert not torch.equal(probes(epoch="tune"), probes(epoch="judge"))
    assert not torch.equal(probes()[0], probes()[1])


def test_the_tuning_epoch_judges_nothing():
    cells = [measured(BASE), measured(PERFECT)]
    for epoch, met in (("judge", True), ("tune", False)):
        line = by_name(cells, epoch)["seeds"]
        assert line.met is met


def test_twenty_nine_seeds_are_too_few():
    few = Settings(29, 29, "test")
    cells = [measured(BASE, settings=few), measured(PERFECT, settings=few)]
    assert not by_name(cells)["seeds"].met


def test_a_method_that_draws_gets_another_generator_for_every_seed():
    def drawing(operator, *, generator, num_probes):
        X = rademacher(N, num_probes, generator=generator)
        return slq_logdet(operator, X, num_steps=2)

    candidate = Candidate(
        "drawing", drawing, "A", lambda case: [], role="planned", batched=False, draws=True
    )
    cell = measured(candidate, Variant("planned", 0, {"num_probes": 4}))
    assert cell.products == 8
    assert len(set(cell.errors)) == 30


# Command line -------------------------------------------------------------------------------------


def run(tmp_path, *arguments):
    fixed = ["--workers", "1", "--seeds", "30", "--interval-seeds", "30", "--no-costs"]
    return main(["budgets", *fixed, "--out", str(tmp_path), *arguments])


def test_the_command_writes_its_report_and_says_what_is_not_met(monkeypatch, tmp_path, capsys):
    use(monkeypatch, BASE, PERFECT)
    assert run(tmp_path, "--epoch", "here") == 1  # most lines have no case
    out = capsys.readouterr().out
    assert "epoch 'here'" in out
    assert "| not measured |" in out
    text = (tmp_path / "budgets.md").read_text()
    assert "spd/tiny" in text
    records = [json.loads(line) for line in (tmp_path / "budgets.jsonl").read_text().splitlines()]
    cells = [record for record in records if record["kind"] == "budget-cell"]
    assert {(c["method"], c["shape"]) for c in cells} == {
        (method, shape) for method in ("slq", "perfect") for shape in ("3x4", "4x3", "6x2")
    }
    assert all(cell["products"] <= BUDGET and cell["replicates"] == 30 for cell in cells)
    assert (tmp_path / "ratios.svg").read_text().startswith("<svg")


def test_a_judged_method_meets_the_problems_it_is_for(monkeypatch, tmp_path):
    on_J = replace(PERFECT, name="on J", on="J")
    assert PERFECT.applies(CASE, target())
    assert not PERFECT.applies(JACOBIAN, target())
    assert on_J.applies(JACOBIAN, target())
    assert not on_J.applies(CASE, target())


def test_an_overspending_method_ends_the_run_with_1_and_its_name(monkeypatch, tmp_path, capsys):
    greedy = replace(
        PERFECT, name="greedy", variants=lambda case: [Variant("4x4", 4, {"num_steps": 4})]
    )
    use(monkeypatch, BASE, greedy)
    assert run(tmp_path) == 1
    assert "greedy 4x4 on spd/tiny used 16 products of 12" in capsys.readouterr().err
    assert not (tmp_path / "budgets.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "nowhere"], "No case has 'nowhere'"),
        (["--methods", "magic"], "Unknown method 'magic'"),
        (["--seeds", "1"], "At least two seeds"),
    ],
)
def test_bad_input_exits_with_2_and_says_why(arguments, message, tmp_path, capsys):
    assert run(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


def test_quick_leaves_out_what_is_only_shown():
    names = {candidate.name for candidate in budgets_methods.select(quick=True)}
    assert names == {"slq", "block_slq", "block_golub_kahan", "planned"}
    assert budgets.QUICK_SEEDS >= budgets_accept.MIN_SEEDS
