"""One planted fault: a wrong estimator that keeps the claims of the right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from specbp.estimate import Estimate
from verification.subjects import Subject

TABLE = "mutation table"


@dataclass(frozen=True)
class Fault:
    """A wrong estimator, where it was seen, and which checks ought to notice.

    Attributes:
        id: Frozen key, such as "f4a".
        title: What is wrong, for people.
        source: "mutation table", or the library it was seen in and where.
        subject: The wrong estimator, with the claims of the right one.
        control: Name of the right one.
        killers: Codes of the checks expected to fail.
        note: What else is worth knowing.
        equivalent: Why surviving a tier is right; empty where it is not.
    """

    id: str
    title: str
    source: str
    subject: Subject
    control: str
    killers: tuple[str, ...]
    note: str = ""
    equivalent: str = ""

    @property
    def deterministic(self) -> bool:
        """True if a check of tier D or P is expected to notice: no chance is involved."""
        return any(code[0] in "DP" for code in self.killers)


def plant(
    control: Subject,
    id: str,
    title: str,
    killers: str,
    *,
    source: str = TABLE,
    note: str = "",
    equivalent: str = "",
    **changes: Any,
) -> Fault:
    """The fault that replaces fields of a control; killers are codes separated by spaces."""
    subject = replace(control, name=id, **changes)
    codes = tuple(killers.split())
    return Fault(id, title, source, subject, control.name, codes, note, equivalent)


def then(control: Subject, change: Callable[[Estimate], Estimate]) -> Callable[..., Estimate]:
    """The estimator of a control with its result changed."""

    def estimate(*arguments: Any, **config: Any) -> Estimate:
        return change(control.estimate(*arguments, **config))

    return estimate
