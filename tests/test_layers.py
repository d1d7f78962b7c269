"""The architecture as a test: imports point down, the oracle stands alone, no global seeds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 350

# From the bottom up: a module may import what stands on the lines before its own, nothing else.
LAYERS = [
    "surrogate",
    "estimate",
    "interop",
    "operators",
    "wrappers",
    "probes",
    "matrices datasets",
    "jacobian",
    "differentiable functional",
    "krylov",
    "solvers",
    "polynomials",
    "bounds",
    "quadrature",
    "sensitivities",
    "trace",
    "lowrank_trace",
    "direct",
    "logdets gradients",
    "degree_laws maxent",
    "roulette",
    "nystrom",
    "multilevel",
    "block",
    "block_rules subspace",
    "cross_fitting",
    "blockquad deflation",
    "deflated_chebyshev",
    "density_estimate",
    "density_kernel",
    "density density_distances",
    "claims costs",
    "joint_methods",
    "methods",
    "named plan_costs plan_runs",
    "plan plan_target",
    "planner",
    "likelihood",
    "objectives",
    "models",
    "__init__",
    "testing",
]
ORACLE = "exact"  # imports nothing of specbp and is imported by nothing of specbp …
KIT = "testing"  # … but the kit, which judges by it

GLOBAL_STATE = {
    "torch.manual_seed",
    "torch.seed",
    "torch.random.manual_seed",
    "torch.random.seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.set_default_dtype",
    "torch.set_default_device",
    "torch.set_default_tensor_type",
    "numpy.random.seed",
    "numpy.random.set_state",
    "random.seed",
}
DRAWS = {
    "torch.rand",
    "torch.randn",
    "torch.randint",
    "torch.randperm",
    "torch.bernoulli",
    "torch.normal",
    "torch.multinomial",
}


def sources(folder: Path) -> list[Path]:
    """All Python files below a folder; a folder without any would make every check pass."""
    files = sorted(folder.rglob("*.py"))
    assert files, f"no Python files in {folder}"
    return files


def module_names(package: Path) -> set[str]:
    """Top-level modules and subpackages of a package."""
    files = {path.stem for path in package.glob("*.py")}
    return files | {path.parent.name for path in package.glob("*/__init__.py")}


def module_of(path: Path, package: Path) -> str:
    """The top-level module a file belongs to: models/dcgan.py belongs to models."""
    return path.relative_to(package).with_suffix("").parts[0]


def absolute(node: ast.ImportFrom, path: Path, package: Path) -> str:
    """The absolute dotted name of the module in `from … import`."""
    if not node.level:
        return node.module or ""
    parts = [package.name, *path.relative_to(package).parts[:-1]]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def imported_names(path: Path, package: Path) -> Iterator[str]:
    """Absolute dotted names a file imports, inside functions and TYPE_CHECKING blocks too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, path, package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def internal_imports(path: Path, package: Path) -> set[str]:
    """Top-level modules of the package that a file imports; other names are its `__init__`'s."""
    modules = module_names(package)
    found = set()
    for name in imported_names(path, package):
        head, _, rest = name.partition(".")
        if head == package.name:
            module = rest.partition(".")[0]
            found.add(module if module in modules else "__init__")
    return found - {module_of(path, package)}


def layer_violations(package: Path, layers: list[str], oracle: str) -> list[str]:
    """Imports that do not point down, and modules and rows without a counterpart."""
    rank = {name: row for row, names in enumerate(layers) for name in names.split()}
    listed, present = {*rank, oracle}, module_names(package)
    found = [f"{name}: not in LAYERS, give it a line" for name in sorted(present - listed)]
    found += [f"{name}: in LAYERS, but no such module" for name in sorted(listed - present)]
    for path in sources(package):
        module, imports = module_of(path, package), internal_imports(path, package)
        if module == oracle or (oracle in imports and module != KIT):
            bad = imports if module == oracle else {oracle}
        else:
            below = imports - ({oracle} if module == KIT else set())
            bad = {name for name in below if rank.get(name, -1) >= rank.get(module, len(layers))}
        found += [f"{path.relative_to(package)} imports {name}" for name in sorted(bad)]
    return found


def full_names(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for: {"np": "numpy", "seed": "numpy.random.seed"}."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def calls(path: Path) -> Iterator[tuple[int, str, set[str | None]]]:
    """(line, full dotted name, keywords) of every call of a dotted name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = full_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            head, dot, rest = ast.unparse(node.func).partition(".")
            keywords = {keyword.arg for keyword in node.keywords}
            yield node.lineno, names.get(head, head) + dot + rest, keywords


def randomness_violations(folder: Path) -> list[str]:
    """Calls that set global state, and draws without an explicit generator."""
    found = []
    for path in sources(folder):
        for line, name, keywords in calls(path):
            where = f"{path.relative_to(folder)}:{line}"
            if name in GLOBAL_STATE:
                found.append(f"{where} calls {name}")
            elif name in DRAWS and "generator" not in keywords:
                found.append(f"{where} calls {name} without generator=")
    return found


def long_files(folder: Path, limit: int = MAX_LINES) -> list[str]:
    """Files of more than `limit` lines: probably two modules."""
    lengths = {
        path.relative_to(folder): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources(folder)
    }
    return [f"{path}: {size} lines" for path, size in lengths.items() if size > limit]


def test_imports_of_specbp_point_down():
    assert layer_violations(ROOT / "specbp", LAYERS, ORACLE) == []


def test_specbp_imports_nothing_of_the_repository_but_itself():
    package = ROOT / "specbp"
    heads = {
        (path.name, name.partition(".")[0])
        for path in sources(package)
        for name in imported_names(path, package)
    }
    assert [pair for pair in heads if pair[1] in ("verification", "tests")] == []


@pytest.mark.parametrize("folder", ["specbp", "verification"])
def test_nothing_seeds_globally_or_draws_without_generator(folder):
    assert randomness_violations(ROOT / folder) == []


@pytest.mark.parametrize("folder", ["specbp", "verification", "tests"])
def test_files_are_short(folder):
    assert long_files(ROOT / folder) == []


# The checks themselves, on packages that break each rule ------------------------------------------


@pytest.fixture
def write(tmp_path):
    """Write a package `pkg` with layers low, high, models and the oracle exact."""

    def write(**contents: str) -> Path:
        files = dict.fromkeys(("__init__", "low", "high", "models/__init__", "exact"), "")
        files |= {name.replace("__in__", "/"): text for name, text in contents.items()}
        for name, text in files.items():
            path = tmp_path / "pkg" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "pkg"

    return write


def violations(package: Path) -> list[str]:
    return layer_violations(package, ["low", "high", "models", "__init__"], "exact")


def test_downward_imports_pass(write):
    package = write(
        __init__="from . import high\nfrom .low import a\nfrom pkg.models import net",
        high="import torch\nfrom pkg.low import a\nfrom . import low",
        models__in__net="from ..high import a\nfrom .other import b\nfrom pkg import low",
        models__in__other="",
    )
    assert violations(package) == []


@pytest.mark.parametrize(
    "line",
    [
        "from .high import a",
        "from . import high",
        "from pkg import high",
        "from pkg.high import a",
        "import pkg.high",
        "import pkg.high as h",
        "def f():\n    from pkg.high import a",
        "if TYPE_CHECKING:\n    from pkg.high import A",
    ],
)
def test_upward_import_is_found(write, line):
    assert violations(write(low=line)) == ["low.py imports high"]


def test_import_through_the_package_root_is_found(write):
    assert violations(write(low="from pkg import thing")) == ["low.py imports __init__"]
    assert violations(write(low="import pkg")) == ["low.py imports __init__"]


def test_upward_import_into_a_subpackage_is_found(write):
    assert violations(write(high="from .models.net import a")) == ["high.py imports models"]
    package = write(high="", models__in__net="from .. import thing")
    assert violations(package) == ["models/net.py imports __init__"]


def test_oracle_stands_alone(write):
    assert violations(write(exact="from .low import a")) == ["exact.py imports low"]
    assert violations(write(exact="", high="from . import exact")) == ["high.py imports exact"]
    assert violations(write(high="", __init__="from .exact import slogdet")) == [
        "__init__.py imports exact"
    ]


def test_unlisted_and_stale_modules_are_found(write):
    package = write(extra="")
    assert violations(package) == ["extra: not in LAYERS, give it a line"]
    (package / "extra.py").unlink()
    (package / "high.py").unlink()
    assert violations(package) == ["high: in LAYERS, but no such module"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import torch\ntorch.manual_seed(0)", "torch.manual_seed"),
        ("import torch as t\nt.cuda.manual_seed_all(0)", "torch.cuda.manual_seed_all"),
        ("from torch import set_default_dtype as f\nf(x)", "torch.set_default_dtype"),
        ("import numpy as np\nnp.random.seed(0)", "numpy.random.seed"),
        ("from numpy.random import seed\nseed(0)", "numpy.random.seed"),
        ("from numpy import random\nrandom.seed(0)", "numpy.random.seed"),
        ("import random\nrandom.seed(0)", "random.seed"),
        ("import torch\ntorch.randn(3)", "torch.randn without generator="),
    ],
)
def test_global_randomness_is_found(write, text, name):
    assert randomness_violations(write(low=text)) == [f"low.py:2 calls {name}"]


def test_own_generators_pass(write):
    text = "import torch\ng = torch.Generator()\ng.manual_seed(0)\ntorch.randn(3, generator=g)"
    assert randomness_violations(write(low=text)) == []


def test_long_file_is_found(write):
    package = write(low="\n" * (MAX_LINES + 1), high="\n" * MAX_LINES)
    assert long_files(package) == [f"low.py: {MAX_LINES + 1} lines"]


def test_empty_folder_fails_instead_of_passing(tmp_path):
    with pytest.raises(AssertionError, match="no Python files"):
        long_files(tmp_path)
