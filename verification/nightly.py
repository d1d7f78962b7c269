"""The nightly e-detector: small faults that no single night proves, added up over nights.

Every night has fresh seeds, and each family of tier S (one question to one estimator, over all
cells) gives evidence against its being right. Its score z is standard normal and its p-value valid
while nothing is wrong, so for each tilt s

    exp(± s z − s²/2)    and    cosh(s |z_p|) exp(−s²/2),   z_p the normal score of p,

have expectation at most one: the first is the likelihood ratio of a shifted score, the second
decreases in p and has integral one over p, which makes it an e-value of any valid p-value. For each
of them M ← (M + 1) e accumulates evidence since an unknown night. The mean of M over alternatives
and families alarms at 1000: false alarms come after 1000 nights or more, on average, whatever the
dependence between families (Shin, Ramdas and Rinaldo 2024, arXiv:2203.03532). What fails without
chance, such as a NaN, alarms at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date as Date
from pathlib import Path
from typing import Any

import numpy as np

from specbp.methods import METHODS
from specbp.testing.evalues import ShiryaevRoberts
from specbp.testing.outcome import FAIL, Check, normal_score
from verification import gate_report
from verification.checks import sampling
from verification.checks.settings import Settings
from verification.report.files import replace_files
from verification.store import Record
from verification.subjects import Subject, from_method

FORMAT = 1
THRESHOLD = 1000.0
SIZE = 256  # replicates of each cell and night
TILTS = (0.25, 0.5, 1.0, 2.0, 4.0)
ALTERNATIVES = 3 * len(TILTS)
LARGEST = 1e300  # evidence beyond this is stored as this
FIELDS = {"kind", "id", "date", "z", "p", "e", "M", "evidence"}  # of a family's record
# Of another version is a state whose evidence was gathered by other rules.
RULES = {"format": FORMAT, "threshold": THRESHOLD, "size": SIZE, "tilts": list(TILTS)}


def run(
    state: Path, date: str, *, subjects: Sequence[Subject] | None = None
) -> tuple[list[Record], bool]:
    """Count one night, unless it is counted already, and store the evidence so far.

    Args:
        state: JSON file of the evidence; it is begun if it does not exist, and replaced as a whole.
        date: Of the night, YYYY-MM-DD; part of every seed.
        subjects: Estimators; all gated rows of the methods table that use probes, by default.

    Returns:
        One record for each family, and one for the suite; and whether to alarm.

    Raises:
        ValueError: If the date is none or lies before the last night, or the file is damaged or of
            another version; it is left as it is. If it cannot be written, or nothing is judged.
    """
    night = _parsed(date)
    date = night.isoformat()  # one spelling: it is part of the seeds and tells nights apart
    before = _read(state)
    if before.date and night < _parsed(before.date):
        raise ValueError(
            f"Nights are counted in order: {state} holds {before.date}, got {date}. "
            "Give a later date, or another file."
        )
    if before.date != date:
        _check_writable(state)
        before = count(before, date, gated_subjects() if subjects is None else subjects)
        if not (before.families or before.failed):
            raise ValueError("No estimator was judged, so there is no night to count: name some.")
        _write(state, before)
    return before.records(), before.alarm


@dataclass(frozen=True)
class State:
    """The evidence after some nights.

    Attributes:
        date: Of the last night; empty before the first.
        nights: How many were counted.
        families: Record of each family by id, with the M of each alternative in `evidence`.
        failed: What failed without chance in the last night.
    """

    date: str = ""
    nights: int = 0
    families: dict[str, Record] = field(default_factory=dict)
    failed: tuple[str, ...] = ()

    @property
    def M(self) -> float:
        """Mean evidence of the families; one that is no longer asked keeps its share."""
        return float(np.mean([f["M"] for f in self.families.values()])) if self.families else 0.0

    @property
    def alarm(self) -> bool:
        """Whether something is wrong."""
        return self.M >= THRESHOLD or bool(self.failed)

    def records(self) -> list[Record]:
        """One record for the suite, and one for each family, the strongest evidence first."""
        suite = {
            "kind": "nightly",
            "id": "suite",
            "date": self.date,
            "nights": self.nights,
            "M": self.M,
            "threshold": THRESHOLD,
            "alarm": self.alarm,
            "failed": list(self.failed),
        }
        return [suite, *sorted(self.families.values(), key=lambda f: -f["M"])]


def gated_subjects() -> list[Subject]:
    """The estimators of the methods table that draw probes and are judged."""
    rows = METHODS.values()
    return [from_method(row) for row in rows if row.claims.gated and row.uses_probes]


def count(before: State, date: str, subjects: Iterable[Subject]) -> State:
    """The evidence after one more night."""
    settings = Settings(epoch=f"nightly {date}", sizes=(SIZE,))
    families, failed = dict(before.families), []
    for subject in subjects:
        for check in sampling.run(subject, settings):
            id = f"{subject.name}|{check.name}"
            if check.z is not None and check.p is not None:
                families[id] = _updated(id, families.get(id), check, date)
            elif check.verdict == FAIL:
                failed.append(f"{id}: {check.message}")
    return State(date, before.nights + 1, families, tuple(failed))


def _updated(id: str, before: Record | None, check: Check, date: str) -> Record:
    assert check.z is not None
    assert check.p is not None
    e = evidence(check.z, check.p)
    detector = ShiryaevRoberts(THRESHOLD, before["evidence"] if before else np.zeros(ALTERNATIVES))
    detector.update(e)
    M = np.minimum(detector.state, LARGEST)
    return {
        "kind": "nightly",
        "id": id,
        "date": date,
        "z": check.z,
        "p": check.p,
        "e": float(e.mean()),
        "M": float(M.mean()),
        "evidence": M.tolist(),
    }


def evidence(z: float, p: float) -> np.ndarray:
    """e-values of one family and night, one for each alternative, (ALTERNATIVES,).

    Args:
        z: Standard normal score of the sum over cells.
        p: p-value of the family, Holm's, the sum's and that of the squares together.
    """
    s = np.array(TILTS)
    score = normal_score(p)
    logs = [s * z, -s * z, np.logaddexp(s * score, -s * score) - math.log(2)]
    return np.exp(np.minimum(np.concatenate(logs) - np.tile(s**2, 3) / 2, math.log(LARGEST)))


def _parsed(date: str) -> Date:
    try:
        return Date.fromisoformat(date)
    except ValueError:
        raise ValueError(f"A date YYYY-MM-DD is required, got {date!r}.") from None


def _check_writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error}): name another file.") from None
    gate_report.check_targets(path)


def _write(path: Path, state: State) -> None:
    content = {
        "rules": RULES,
        "date": state.date,
        "nights": state.nights,
        "failed": list(state.failed),
        "families": list(state.families.values()),
    }
    replace_files({path: json.dumps(content, indent=1, allow_nan=False) + "\n"})


def _read(path: Path) -> State:
    """The state in a file, or that before the first night if there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return State()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(_refusal(path, f"cannot be read ({error})")) from None
    try:
        content = json.loads(text)
        rules = content["rules"]
        state = _state(content) if rules == RULES else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"is damaged ({type(error).__name__}: {error})"
        raise ValueError(_refusal(path, reason)) from None
    if state is None:
        raise ValueError(_refusal(path, f"is of another version (rules {rules}, here {RULES})"))
    return state


def _refusal(path: Path, reason: str) -> str:
    return (
        f"The state file {path} {reason}. Evidence of earlier nights cannot be added to: restore "
        "the file, or name a new one to begin again."
    )


def _state(content: dict[str, Any]) -> State:
    """The state in a parsed file; whatever is not as `_write` left it raises."""
    date, nights, failed = content["date"], content["nights"], content["failed"]
    _canonical(date)
    _require(type(nights) is int and nights >= 1, f"nights = {nights!r}")
    _require(_is_list_of(failed, str), f"failed = {failed!r}")
    _require(_is_list_of(content["families"], dict), "families is no list of records")
    families = {family["id"]: _checked(family, date) for family in content["families"]}
    _require(len(families) == len(content["families"]), "an id occurs twice")
    _require(bool(families or failed), f"{nights} nights without a family")
    return State(date, nights, families, tuple(failed))


def _checked(family: Record, last: str) -> Record:
    id, evidence = family["id"], family["evidence"]
    _require(set(family) == FIELDS, f"the fields of {id!r} are {sorted(family)}")
    _require(type(id) is str and bool(id) and family["kind"] == "nightly", f"the id {id!r}")
    _canonical(family["date"])
    _require(family["date"] <= last, f"{id} is of {family['date']}, after {last}")
    z, p, e, M = (family[key] for key in ("z", "p", "e", "M"))
    _require(_are_numbers([z, p, e, M]), f"the numbers of {id} are {[z, p, e, M]}")
    _require(0 <= p <= 1 and e >= 0, f"p = {p}, e = {e} of {id}")
    right = _is_list_of(evidence, float, int) and len(evidence) == ALTERNATIVES
    right = right and _are_numbers(evidence) and min(evidence) >= 0
    _require(right, f"the evidence of {id} is {evidence}")
    mean = float(np.mean(evidence))
    _require(math.isclose(M, mean, rel_tol=1e-9), f"the evidence of {id} has not the mean {M}")
    return family


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _canonical(date: object) -> None:
    right = isinstance(date, str) and _parsed(date).isoformat() == date
    _require(right, f"A date YYYY-MM-DD is required, got {date!r}.")


def _is_list_of(found: object, *types: type) -> bool:
    return isinstance(found, list) and all(type(item) in types for item in found)


def _are_numbers(found: Sequence[object]) -> bool:
    return all(type(x) in (float, int) and -LARGEST <= x <= LARGEST for x in found)  # type: ignore[operator]
