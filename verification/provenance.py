"""Where the numbers of a run come from: source, versions, machine and settings."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch

from verification.store import Record, strict

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "matplotlib")


def fingerprint() -> str:
    """SHA-256 of everything that determines a record: the sources and the weights."""
    digest = hashlib.sha256(torch.__version__.encode())
    code = ("", "checks/", "faults/")  # not the report: it only reads records
    patterns = (
        "specbp/**/*.py",
        *(f"verification/{folder}*.py" for folder in code),
        "verification/weights/*.safetensors",
    )
    for path in sorted(p for pattern in patterns for p in ROOT.glob(pattern)):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def judging_epoch() -> str:
    """Part of the seeds on which a study judges: another one as soon as the source changes."""
    return f"judge {fingerprint()[:8]}"


def origin() -> Record:
    """Commit and fingerprint of the source that is running."""
    commit, clean = _commit()
    return {"commit": commit, "clean": clean, "fingerprint": fingerprint()}


def _commit() -> tuple[str, bool]:
    commit = _git("rev-parse", "HEAD")
    # The reports of a run are its output: they do not make the tree that produced them unclean.
    changes = _git("status", "--porcelain", "--", ".", ":!reports", ":!README.md")
    return commit or "unknown", commit is not None and not changes


def describe(records: Iterable[Record], **settings: object) -> Record:
    """The provenance record of a run."""
    commit, clean = _commit()
    return {
        "kind": "provenance",
        "id": "run",
        "commit": commit,
        "clean": clean,
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "results_sha256": _digest(records),
        **settings,
    }


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


def _digest(records: Iterable[Record]) -> str:
    """SHA-256 of the results, the timings of this machine left out."""
    digest = hashlib.sha256()
    for record in records:
        kept = {k: v for k, v in record.items() if not k.startswith("seconds")}
        digest.update(json.dumps(strict(kept), sort_keys=True).encode())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    try:
        found = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
