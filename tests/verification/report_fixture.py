"""Synthetic records for the tests of the report: made up from formulas and a random generator.

Nothing here is a measurement, and the provenance record says so. The numbers only behave as those
of a run do: biases fall with the degree, sampling errors with the square root of the probes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

Record = dict[str, Any]

SPECTRA = {
    "flat-c2": 2.0,
    "geometric-c1e2": 1e2,
    "arithmetic-c1e2": 1e2,
    "geometric-c1e4": 1e4,
    "clusters-c1e4": 1e4,
    "marchenko-pastur": 4e2,
    "power-law-c1e6": 1e6,
    "one-spike-c1e6": 1e6,
}
REAL = {
    "kernel/breast_cancer-rbf/noise1e-2": ("kernel", 569, 5e4),
    "kernel/breast_cancer-rbf/noise1e-4": ("kernel", 569, 5e6),
    "laplacian/digits-knn10": ("laplacian", 1797, 4e3),
    "jacobian/dcgan-z64/init": ("jacobian", 64, 3e2),
    "jacobian/dcgan-z64/trained": ("jacobian", 64, 9e5),
    "jacobian/wide-resnet-2d/trained": ("jacobian", 2, 6e1),
}
GRID: dict[str, list[tuple[str, Record, int]]] = {
    "chebyshev": [(f"chebyshev d={d}", {"degree": d}, d) for d in (10, 40)],
    "algorithm1_plain": [("algorithm1_plain d=20", {"degree": 20}, 20)],
    "taylor": [("taylor d=40", {"degree": 40}, 40)],
    "slq": [(f"slq k={k}", {"num_steps": k}, k) for k in (5, 20)],
    "golub_kahan": [("golub_kahan k=20", {"num_steps": 20}, 20)],
    "hutchinson": [("hutchinson", {}, 1)],
}
PROBES = (1, 4, 16, 64)


def synthetic_records(
    *,
    sizes: tuple[int, ...] = (16, 64, 256),
    methods: tuple[str, ...] = tuple(GRID),
    probes: tuple[int, ...] = PROBES,
    replicates: int = 256,
    faulty: bool = True,
    only: str = "",
    seed: int = 0,
) -> list[Record]:
    """A run's records of every kind, all synthetic.

    Args:
        sizes: Orders of the matrices with a prescribed spectrum.
        methods: Methods beside the exact one.
        probes: Numbers of probes per estimate.
        replicates: Number of estimates per cell.
        faulty: Whether one cell fails and one is inconclusive.
        only: Part of the case ids to include.
        seed: Seed of the generator.
    """
    rng = np.random.default_rng(seed)
    cases = [case for case in _cases(sizes) if only in case["case"]]
    cells = [_exact(case, rng) for case in cases]
    cells += [
        _cell(case, method, entry, m, dtype, replicates, rng)
        for case in cases
        for method in methods
        for entry in GRID[method]
        for m in probes
        for dtype in ("float64", "float32")
    ]
    if faulty:
        _plant_faults(cells)
    certificates = [_certificate(case) for case in cases]
    return [*certificates, *cells, *_timing(rng), *_precision(), _provenance(cells)]


def small(**options: Any) -> list[Record]:
    """A run of one case, which renders in about a second."""
    chosen = {
        "sizes": (16,),
        "methods": ("chebyshev", "slq"),
        "probes": (4, 16),
        "only": "clusters",
    }
    return synthetic_records(**{**chosen, **options})


def cells_of(records: list[Record]) -> list[Record]:
    """The cells among some records."""
    return [record for record in records if record["kind"] == "cell"]


def one_cell(records: list[Record], method: str = "chebyshev") -> Record:
    """The first cell of a method."""
    return next(cell for cell in cells_of(records) if cell["method"] == method)


def _cases(sizes: tuple[int, ...]) -> Iterator[Record]:
    for spectrum, cond in SPECTRA.items():
        for n in sizes:
            yield _case(f"spd/{spectrum}/n{n}", "spd", spectrum, n, cond, n * math.log(cond) / 2)
    for name, (family, n, cond) in REAL.items():
        yield _case(name, family, name.split("/", 1)[1], n, cond, -0.3 * n * math.log(cond))


def _case(case: str, family: str, spectrum: str, n: int, cond: float, truth: float) -> Record:
    return {
        "case": case,
        "family": family,
        "title": f"synthetic {case}",
        "spectrum": spectrum,
        "n": n,
        "cond": cond,
        "truth": truth,
        "u_truth": 4e-16 * n * math.log10(cond) * 10,
    }


def _bias(method: str, degree: int, case: Record) -> float:
    root = math.sqrt(case["cond"])
    rate = (root - 1) / (root + 1)
    exponent = {"slq": 2 * degree, "golub_kahan": 2 * degree, "taylor": degree / root}
    size = 0.05 * case["n"] * rate ** exponent.get(method, degree)
    return {"hutchinson": 0.0, "taylor": -size}.get(method, size)


def _setting(
    method: str, label: str, config: Record, *, m: int, dtype: str, replicates: int
) -> Record:
    estimand = "trace" if method == "hutchinson" else "logdet"
    names = {"method": method, "config": config, "label": label, "estimand": estimand}
    sizes = {"probes": m, "law": "rademacher" if m else None, "replicates": replicates}
    return {**names, **sizes, "batch": 1, "dtype": dtype, "device": "cpu"}


def _exact(case: Record, rng: np.random.Generator) -> Record:
    error = case["u_truth"] * rng.normal()
    return {
        "kind": "cell",
        "id": f"{case['case']}|qr|m0|float64",
        **case,
        "probe_error": None,  # most fields are absent, as in a run: the report must bear it
        **_setting("qr", "qr", {}, m=0, dtype="float64", replicates=1),
        "mean": case["truth"] + error,
        "rmse": abs(error),
        "matvecs": case["n"],
        "seconds": 1e-3,
        "status": {"OK": 1},
        "checks": [_within("exact", abs(error), 10 * case["u_truth"])],
        "verdict": "PASS",
    }


def _cell(
    case: Record,
    method: str,
    entry: tuple[str, Record, int],
    m: int,
    dtype: str,
    replicates: int,
    rng: np.random.Generator,
) -> Record:
    label, config, degree = entry
    b = _bias(method, degree, case)
    sd1 = math.log(case["cond"]) * math.sqrt(case["n"] / 6)
    sd = sd1 / math.sqrt(m)
    reported = dtype == "float32" and case["cond"] > 1e5 and method in {"slq", "algorithm1_plain"}
    shift = 0.6 * sd1 if reported else 0.0
    expected = case["truth"] + b
    values = expected + shift + sd * rng.standard_normal(replicates)
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    half = 2.576 * sd / math.sqrt(replicates)
    z = (mean - expected) * math.sqrt(replicates) / sd
    ratio = float(np.mean((values - expected) ** 2)) / sd**2
    polynomial = method in {"chebyshev", "algorithm1_plain", "taylor"}
    cell = {
        "kind": "cell",
        "id": f"{case['case']}|{label.replace(' ', '-').replace('=', '')}|m{m}|{dtype}",
        **case,
        **_setting(method, label, config, m=m, dtype=dtype, replicates=replicates),
        "bias_exact": b if polynomial else None,
        "paired_bias": b + shift,
        "paired_bias_se": 1e-3 * abs(b) + 1e-14 * case["n"],
        "sd_exact": sd,
        "mean": mean,
        "mean_ci": [mean - half, mean + half],
        "sd": spread,
        "sd_ci": [spread * 0.89, spread * 1.13],
        "rmse": float(np.sqrt(np.mean((values - case["truth"]) ** 2))),
        "z": z,
        "var_ratio": ratio,
        "probe_error": float(rng.uniform(0.01, 0.4)) if polynomial else None,
        "bracket": _bracket(method, case, b),
        "matvecs": degree * m,
        "seconds": 2e-5 * degree * m * replicates,
        "seconds_single": 3e-4 * degree * m * replicates,
        "status": {"OK": replicates},
        **_coverage(values, sd, m, case["truth"], expected + shift, rng),
    }
    cell["checks"] = _checks(cell)
    cell["verdict"] = "REPORTED" if reported else "PASS"
    if reported:
        message = "float32 Lanczos on an ill-conditioned Gram matrix: documented limitation"
        cell["checks"][0].update(verdict="REPORTED", message=message)
    return cell


def _bracket(method: str, case: Record, b: float) -> Record | None:
    if method not in {"slq", "golub_kahan"}:
        return None
    lower = None if method == "slq" else case["truth"] - 1.3 * b
    return {"lower": lower, "upper": case["truth"] + b, "holds": 1.0}


def _coverage(
    values: np.ndarray, sd: float, m: int, truth: float, centre: float, rng: np.random.Generator
) -> Record:
    if m == 1:
        return {"coverage": None, "coverage_expectation": None, "se2_ratio": None}
    se2 = sd**2 * rng.chisquare(m - 1, values.size) / (m - 1)
    reach = {4: 3.182, 16: 2.131, 64: 1.998}.get(m, 1.96) * np.sqrt(se2)
    return {
        "coverage": float(np.mean(np.abs(values - truth) <= reach)),
        "coverage_expectation": float(np.mean(np.abs(values - centre) <= reach)),
        "se2_ratio": float(np.mean(se2)) / sd**2,
    }


def _check(
    name: str, statistic: float, reference: float, p: float, detectable: float, margin: float
) -> Record:
    found = {"reference": reference, "p": p, "alpha": 1e-6, "detectable": detectable}
    message = f"{name} agrees with its reference"
    return {**_within(name, statistic, margin), **found, "message": message}


def _within(name: str, error: float, limit: float) -> Record:
    return {
        "name": name,
        "claim": f"synthetic claim about {name}",
        "verdict": "PASS",
        "statistic": error,
        "reference": 0.0,
        **dict.fromkeys(("p", "alpha", "detectable")),
        "margin": limit,
        "message": f"largest error {error:.3g}, limit {limit:.3g}",
    }


def _checks(cell: Record) -> list[Record]:
    r = cell["replicates"]
    p = math.erfc(abs(cell["z"]) / math.sqrt(2))
    p_variance = math.erfc(abs(math.log(cell["var_ratio"])) / math.sqrt(4 / r))
    checks = [
        _check("mean", cell["z"], 0.0, p, 6.5 / math.sqrt(r * cell["probes"]), 0.5),
        _check("variance", cell["var_ratio"], 1.0, p_variance, 7.9 / math.sqrt(r), 0.5),
        _within("aggregation", 1e-13, 1e-11),
        _within("matvecs", 0.0, 0.0),
        _within("status", 0.0, 0.0),
    ]
    if cell["probe_error"] is not None:
        checks.append(_within("probe", cell["probe_error"] * 1e-11, 1e-11))
    if cell["bracket"] is not None:
        checks.append(_within("bracket", 1e-13, 1e-11))
    if cell["se2_ratio"] is not None:
        checks.append(_check("se", cell["se2_ratio"], 1.0, 0.4, 3.5 / math.sqrt(r), 0.5))
    return checks


def _plant_faults(cells: list[Record]) -> None:
    """One cell whose mean is off by half a sd, one whose variance test is too weak."""
    sampled = [cell for cell in cells if cell["probes"] and cell["verdict"] == "PASS"]
    bad, weak = sampled[len(sampled) // 3], sampled[2 * len(sampled) // 3]
    shift = 0.5 * bad["sd_exact"]
    bad["mean"] += shift
    bad["mean_ci"] = [end + shift for end in bad["mean_ci"]]
    bad["z"] += 0.5 * math.sqrt(bad["replicates"])
    bad["verdict"] = "FAIL"
    bad["checks"][0].update(
        verdict="FAIL", statistic=bad["z"], p=1e-12, message="mean is off by half a standard error"
    )
    weak["verdict"] = "INCONCLUSIVE"
    weak["status"] = {"OK": weak["replicates"] - 3, "NEGATIVE_RITZ": 3}
    weak["checks"][1].update(
        verdict="INCONCLUSIVE", detectable=0.9, message="too few replicates for heavy tails"
    )


def _certificate(case: Record) -> Record:
    svd = case["truth"]
    methods: Record = {"svd": svd, "qr": svd + case["u_truth"]}
    if case["n"] <= 64:
        methods["mpmath"] = svd - case["u_truth"] / 2
    identity = {"kind": "certificate", "dtype": "float64", "operator": "J"}
    return {**identity, **case, "methods": methods}


def _timing(rng: np.random.Generator) -> list[Record]:
    limits = {"slq k=20 m=10": 1.3, "golub_kahan k=20 m=10": 1.3, "chebyshev d=40 m=10": 1.1}
    seconds = {"seconds_estimate": 0.021, "seconds_products": 0.019}
    common = {"kind": "timing", "name": "overhead", "dtype": "float64", **seconds}
    pairs = [(p, m) for p in ("dense n=1000", "dcgan z=64") for m in limits]
    ratios = [1 + rng.uniform(0.2, 0.9) * (limits[method] - 1) for _, method in pairs]
    return [
        {**common, "problem": problem, "method": method, "ratio": ratio, "limit": limits[method]}
        for (problem, method), ratio in zip(pairs, ratios, strict=True)
    ]


def _precision() -> list[Record]:
    limits = {"golub_kahan": 1e-3, "qr": 1e-4, "slq": None}
    return [
        {
            "kind": "precision",
            "cond": cond,
            "method": method,
            "error": {"golub_kahan": 2e-9, "qr": 4e-10, "slq": 1e-7}[method] * cond**power,
            "limit": limit,
            "n": 64,
        }
        for method, limit in limits.items()
        for cond in (1e2, 1e4, 1e6, 1e8, 1e10)
        for power in [1.0 if method == "slq" else 0.5]
    ]


def _provenance(cells: list[Record]) -> Record:
    return {
        "kind": "provenance",
        "commit": "synthetic",
        "clean": True,
        "versions": {"python": "0.0", "torch": "0.0", "numpy": np.__version__},
        "platform": "synthetic fixture: no measurement",
        **{"device": "cpu", "threads": 1, "epoch": "synthetic", "tf32": False},
        "started": "1970-01-01T00:00:00Z",
        "wall_seconds": sum(cell["seconds"] for cell in cells),
        "tier": "synthetic",
        "suite_alpha": 1e-3,
        "batched_speedup": 14.2,
        "results_sha256": "0" * 64,
    }
