"""Files that change all at once or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def read_style() -> str:
    """The style sheet that every page carries within itself."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def replace_files(contents: Mapping[Path, str]) -> None:
    """Write every text under a temporary name beside its target, then rename them all.

    A reader sees an old file or a new one, never a part; if a write fails, no target has changed.

    Args:
        contents: Text by target path; the directories exist.
    """
    written: dict[Path, Path] = {}
    try:
        for target, text in contents.items():
            written[target] = _write_beside(target, text)
        for target, temporary in written.items():
            temporary.replace(target)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def _write_beside(target: Path, text: str) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private; a report should have the mode any new file would have
        temporary.chmod(target.stat().st_mode if target.exists() else 0o666 & ~_umask())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
