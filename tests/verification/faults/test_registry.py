"""Every fault is planted as it says: claims kept, codes known, control named."""

from __future__ import annotations

import dataclasses

import pytest

from verification.faults import CONTROLS, FAULTS, NOT_APPLICABLE, matrix

CODES = {
    *(f"D{i}" for i in range(1, 13)),
    *("D6a", "D6b", "D6c", "D6d"),
    *(f"P{i}" for i in range(1, 4)),
    *(f"S{i}" for i in range(1, 8)),
}
MUTATIONS = (
    "f1 f2 f3 f4a f4b f5 f6 f7 f8a f8b f8c f9 f10 f11 f12 f13 f14 f15 f16 f18 f19 f20 f21 f22"
)
# The one fault that consists of a claim: an error bar is promised where the right one has none.
OVERCLAIMED = "xtrace-error-bar"


def test_all_mutations_of_the_table_are_planted():
    assert set(MUTATIONS.split()) <= set(FAULTS)
    assert not set(NOT_APPLICABLE) & set(FAULTS)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_keeps_the_claims_of_its_control(fault):
    control = CONTROLS[fault.control]
    assert fault.subject.name == fault.id
    assert set(fault.killers) <= CODES
    assert fault.killers == tuple(dict.fromkeys(fault.killers))
    assert fault.deterministic
    if fault.id != OVERCLAIMED:
        assert fault.subject.claims == control.claims
    same = ("on", "estimand", "arguments", "contract", "gradient")
    assert all(getattr(fault.subject, name) == getattr(control, name) for name in same)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_differs_from_its_control(fault):
    control = dataclasses.replace(CONTROLS[fault.control], name=fault.id)
    assert fault.subject != control
    assert fault.title
    assert fault.source


# What sampling alone can see in a thousand estimates, of the mutations of the table.
SAMPLED = "f1 f2 f3 f4a f6 f7 f8a f8b f9 f10 f11 f13 f14 f16 f18 f19"


def test_the_committed_kills_are_those_that_the_suite_promises():
    kills = matrix.committed_kills()
    assert set(kills) == set(FAULTS)
    assert [id for id, codes in kills.items() if not any(code[0] in "DP" for code in codes)] == []
    sampled = {id for id, codes in kills.items() if any(code[0] == "S" for code in codes)}
    assert set(SAMPLED.split()) <= sampled
