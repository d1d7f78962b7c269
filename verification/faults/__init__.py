"""Planted faults: which check notices which wrong estimator, and that no right one is rejected."""

from verification.faults.controls import CONTROLS
from verification.faults.fault import Fault
from verification.faults.registry import FAULTS, NOT_APPLICABLE

__all__ = ["CONTROLS", "FAULTS", "NOT_APPLICABLE", "Fault"]
