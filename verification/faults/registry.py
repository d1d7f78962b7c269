"""All planted faults, and those of the field that cannot be planted here."""

from __future__ import annotations

from verification.faults import (
    aggregation,
    gradients,
    joint_faults,
    krylov,
    polynomial,
    sampling,
    sensitivity_faults,
)
from verification.faults.fault import Fault

_GROUPS = (
    sampling,
    polynomial,
    krylov,
    joint_faults,
    aggregation,
    gradients,
    sensitivity_faults,
)

FAULTS: dict[str, Fault] = {fault.id: fault for group in _GROUPS for fault in group.FAULTS}

# Faults of other libraries that no estimator of real symmetric matrices can have.
NOT_APPLICABLE = {
    "missing-conjugate": "matfree #268: operators here are real, float32 or float64.",
}
