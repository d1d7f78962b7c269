"""Bias and variance of every cell, exact and measured; the honest number of probes; brackets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from verification.report import derive
from verification.report.records import Record, Records, by_case, label, label_key
from verification.report.tables import Anchors, Table, badge, code, link, numbers
from verification.report.text import MISSING, interval, sig, signed, typeset, whole
from verification.report.verdicts import cell_verdict, tally

USEFUL = 1e9
"""Nobody draws more probes than this; a longer number would only look precise."""

DECOMPOSITION_HEAD = [
    "configuration",
    "verdict",
    "m",
    "dtype",
    "truncation bias b",
    "sampling sd √(V1/m)",
    "measured mean − truth",
    f"{derive.LEVEL:.0%} interval",
    "z",
    "measured sd",
    f"{derive.LEVEL:.0%} interval",
    "sd ratio",
    "RMSE",
    "predicted RMSE",
    "honest m",
    "coverage own / truth",
    "products",
    "status",
]
_TEXT_COLUMNS = {0, 1, 3, 17}


@dataclass(frozen=True)
class CaseGroup:
    """All cells of one case, folded under one line."""

    case: str
    facts: str
    verdict: str
    counts: str
    table: Table


def case_groups(records: Records, anchors: Anchors) -> dict[str, list[CaseGroup]]:
    """Bias–variance decomposition by family and case."""
    families: dict[str, list[CaseGroup]] = {}
    for case, cells in by_case(records.cells).items():
        family = str(cells[0].get("family") or "other")
        families.setdefault(family, []).append(_case_group(case, cells, anchors))
    return families


def _case_group(case: str, cells: list[Record], anchors: Anchors) -> CaseGroup:
    cells = sorted(cells, key=lambda c: (*label_key(c), str(c.get("dtype")), c.get("probes") or 0))
    first, found = cells[0], tally(cells)
    facts = typeset(
        f"n = {whole(first.get('n'))}, cond = {sig(first.get('cond'))}, "
        f"truth {sig(first.get('truth'), 6)}"
    )
    table = Table(
        caption=f"{case}: exact and measured bias and spread of {len(cells)} cells.",
        head=DECOMPOSITION_HEAD,
        rows=[_decomposition_row(cell) for cell in cells],
        numeric=set(range(len(DECOMPOSITION_HEAD))) - _TEXT_COLUMNS,
        ids=[anchors[id(cell)] for cell in cells],
    )
    return CaseGroup(case, facts, found.verdict or "INCONCLUSIVE", found.text(), table)


def _decomposition_row(c: Record) -> list[str]:
    truth = c.get("truth")
    mean = None if c.get("mean") is None or truth is None else c["mean"] - truth
    ratio = None if c.get("var_ratio") is None else math.sqrt(max(c["var_ratio"], 0.0))
    flags = {k: v for k, v in (c.get("status") or {}).items() if k != "OK" and v}
    return [
        label(c),
        badge(cell_verdict(c)),
        whole(c.get("probes")),
        precision_text(c),
        *numbers(
            bias_text(c),
            sig(c.get("sd_exact")),
            signed(mean),
            interval(c.get("mean_ci"), truth or 0.0),
            MISSING if c.get("z") is None else f"{c['z']:+.2f}",
            sig(c.get("sd")),
            interval(c.get("sd_ci")),
            MISSING if ratio is None else f"{ratio:.3f}",
            sig(c.get("rmse")),
            sig(derive.predicted_rmse(c)),
            honest_text(derive.honest_probes(c)),
            _pair(c.get("coverage_expectation"), c.get("coverage")),
            whole(c.get("matvecs")),
        ),
        ", ".join(f"{name} {count:,}" for name, count in flags.items()) or "OK",
    ]


def precision_text(cell: Record) -> str:
    """Dtype, with law and device where they are not the usual ones."""
    extra = [cell.get("law"), cell.get("device")]
    unusual = [str(v) for v in extra if v not in (None, "rademacher", "cpu")]
    return " ".join([str(cell.get("dtype") or MISSING), *unusual])


def bias_text(cell: Record) -> str:
    """Bias with its interval where it was measured and not computed."""
    b = derive.bias(cell)
    if b is None:
        return MISSING
    return signed(b.value) if b.exact else f"{signed(b.value)} ± {sig(b.half_width, 2)}"


def honest_text(m: float | None) -> str:
    """Honest number of probes; neither zero nor a number beyond all use is written out."""
    if m is None:
        return MISSING
    if m >= USEFUL:
        return "∞" if m == math.inf else f"> {sig(USEFUL)}"
    return "none" if m < 1 else sig(m) if m >= 1e5 else whole(math.floor(m))


def _pair(own: float | None, truth: float | None) -> str:
    if own is None and truth is None:
        return MISSING
    return f"{sig(own)} / {sig(truth)}"


def honest_tables(cells: Sequence[Record]) -> tuple[Table, Table] | None:
    """Honest m by configuration, and in full by case."""
    table = derive.honest_by_case(cells)
    if not table:
        return None
    names = [label(c) for c in sorted(cells, key=label_key)]
    labels = [x for x in dict.fromkeys(names) if any(x in row for row in table.values())]
    used = max(c.get("probes") or 0 for c in cells)
    short = [_honest_row(name, table, used) for name in labels]
    head = [
        "configuration",
        "cases",
        "smallest",
        "median",
        f"cases honest at m = {used}",
        "hardest case",
    ]
    full = [
        [code(case), dtype, *(honest_text(row.get(name)) for name in labels)]
        for (case, dtype), row in table.items()
    ]
    share = f"{derive.BIAS_SHARE:g}"
    return (
        Table(
            f"Largest m with |bias| ≤ {share} · se, by configuration.", head, short, {1, 2, 3, 4}
        ),
        Table(
            f"Largest m with |bias| ≤ {share} · se, by case and precision.",
            ["case", "dtype", *labels],
            full,
            set(range(2, len(labels) + 2)),
        ),
    )


def _honest_row(name: str, table: dict[tuple[str, str], dict[str, float]], used: int) -> list[str]:
    found = {key: row[name] for key, row in table.items() if name in row}
    hardest = min(found, key=lambda key: found[key])
    values = list(found.values())
    enough = sum(m >= used for m in values)
    return [
        name,
        whole(len(values)),
        honest_text(min(values)),
        honest_text(median(values)),
        f"{enough:,} of {len(values):,}",
        code(hardest[0]) + Markup(" {}").format(hardest[1]),
    ]


def bracket_table(cells: Sequence[Record], anchors: Anchors) -> Table | None:
    """How often the certified bracket of a probe holds, by configuration and precision."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for cell in sorted(cells, key=label_key):
        if cell.get("bracket"):
            groups.setdefault((label(cell), str(cell.get("dtype"))), []).append(cell)
    if not groups:
        return None
    rows = [_bracket_row(name, dtype, group, anchors) for (name, dtype), group in groups.items()]
    head = [
        "configuration",
        "dtype",
        "cells",
        "sides",
        "median width (nats)",
        "holds: smallest share",
    ]
    head += ["cells where it always holds", "worst cell"]
    return Table("Certified brackets of x' log(A) x.", head, rows, {2, 4, 5, 6})


def _bracket_row(name: str, dtype: str, group: list[Record], anchors: Anchors) -> list[str]:
    def holds(cell: Record) -> float:
        return cell["bracket"].get("holds") or 0.0

    bad = min(group, key=holds)
    always = sum(holds(cell) >= 1.0 for cell in group)
    ends = [(c["bracket"].get("lower"), c["bracket"].get("upper")) for c in group]
    widths = [hi - lo for lo, hi in ends if lo is not None and hi is not None]
    sides = {"both" if None not in e else "lower" if e[1] is None else "upper" for e in ends}
    return [
        name,
        dtype,
        whole(len(group)),
        ", ".join(sorted(sides)),
        typeset(sig(median(widths))) if widths else MISSING,
        sig(holds(bad), 4),
        f"{always:,} of {len(group):,}",
        link(bad, anchors) if always < len(group) else MISSING,
    ]
