"""Presets: one for each tier of the gate, the nightly one the largest."""

from __future__ import annotations

from verification.checks.settings import TIERS
from verification.runner import EPOCH


def test_tiers_share_the_epoch_and_the_nightly_one_is_larger():
    assert list(TIERS) == ["unit", "pull-request", "nightly"]
    assert {settings.epoch for settings in TIERS.values()} == {EPOCH}
    unit, nightly = TIERS["unit"], TIERS["nightly"]
    assert nightly.enumerate_n > unit.enumerate_n
    assert nightly.array_n > unit.array_n
    assert nightly.law_probes > unit.law_probes
