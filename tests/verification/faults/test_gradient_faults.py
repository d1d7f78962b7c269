"""Every fault of a gradient leaves its value as it is, and tier D finds it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from specbp import generator_for
from specbp.testing.outcome import FAIL, PASS, REPORTED
from verification.checks import gradients
from verification.checks.problems import problem
from verification.checks.settings import Settings
from verification.faults import CONTROLS, FAULTS
from verification.faults.differentiable import resensitised
from verification.faults.gradients import FAULTS as OLD
from verification.faults.sensitivity_faults import FAULTS as OF_SENSITIVITIES
from verification.faults.sensitivity_faults import OWN as OWN_SLIP
from verification.faults.sensitivity_faults import of_chebyshev, of_factor, of_slq

OF_GRADIENTS = (*OLD, *OF_SENSITIVITIES)
SMALL = Settings(array_n=32)
# Those of the table, on a control that is slow, are left to the kill matrix.
OWN = [f for f in OF_GRADIENTS if f.source == OWN_SLIP or f.id == "loose-solve"]
FREE = ("loose-cg", "loose-solve", "surrogate-value")  # their values are their own


def killed_by(subject):
    found = [check for claim in gradients.CHECKS for check in claim(subject, SMALL)]
    return {check.name.split()[0] for check in found if check.verdict == FAIL}


@pytest.mark.parametrize("fault", OWN, ids=lambda fault: fault.id)
def test_tier_d_kills(fault):
    expected = {code for code in fault.killers if code[:2] == "D6"}
    killed = killed_by(fault.subject)
    assert killed
    assert expected <= killed


@pytest.mark.parametrize("id", ["shared-sensitivity", "f18"])
def test_the_mean_of_several_probes_kills(id):
    assert "D8" in killed_by(FAULTS[id].subject)


@pytest.mark.parametrize("name", sorted({fault.control for fault in OF_GRADIENTS}))
def test_controls_survive(name):
    found = [check for claim in gradients.CHECKS for check in claim(CONTROLS[name], SMALL)]
    assert {check.verdict for check in found} <= {PASS, REPORTED}
    assert len(found) >= 4


@pytest.mark.parametrize(
    "fault", [f for f in OF_GRADIENTS if f.id not in FREE], ids=lambda fault: fault.id
)
def test_values_are_those_of_the_control(fault):
    subject, control = fault.subject, CONTROLS[fault.control]
    view = problem("cond 1e2", 20).views[subject.on]
    X = control.draw(20, 4, generator=generator_for("faults of gradients"), batch_shape=(2,))
    found, right = (s.call(view, X) for s in (subject, control))
    torch.testing.assert_close(found.samples, right.samples, rtol=0, atol=1e-12)
    assert found.num_matvecs == right.num_matvecs


@pytest.mark.parametrize(
    ("name", "estimate"),
    [("slq", of_slq()), ("golub_kahan", of_factor()), ("chebyshev", of_chebyshev())],
)
def test_seams_that_are_left_alone_give_the_right_gradient(name, estimate):
    assert estimate.func is resensitised
    assert killed_by(replace(CONTROLS[name], estimate=estimate)) == set()
