"""Where a run comes from: code, command, libraries, host.

Read from git and the installed distributions by the parent process, once a command. Everything is
capped; secrets are taken out later, where the journal writes (registry.redact).
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tsx import __version__

DIFF_CAP_CHARS = 200_000
GIT_TIMEOUT_S = 5.0
LIBRARIES = (
    "torch",
    "numpy",
    "safetensors",
    "msgspec",
    "sqlalchemy",
    "alembic",
    "textual",
    "rich",
    "typer",
    "pyarrow",
    "huggingface_hub",
    "nvidia-ml-py",
    "platformdirs",
    "psutil",
    "psycopg",
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Code, host and library versions at the moment a command was given."""

    cwd: str
    host: str
    versions: dict[str, str]
    git_commit: str = ""
    git_branch: str = ""
    git_diff: str = ""


def collect(folder: Path | None = None) -> Provenance:
    """Return the provenance of a command given in `folder` (default: the current one)."""
    place = folder or Path.cwd()
    commit, branch, diff = _read_git(place)
    return Provenance(
        cwd=str(place),
        host=socket.gethostname(),
        versions=list_versions(),
        git_commit=commit,
        git_branch=branch,
        git_diff=diff,
    )


def list_versions() -> dict[str, str]:
    """Return python, tsx, the platform and the libraries as installed, which are not imported."""
    versions = {
        "python": platform.python_version(),
        "tsx": __version__,
        "platform": platform.platform(),
        "executable": sys.executable,
    }
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _read_git(place: Path) -> tuple[str, str, str]:
    """Return (commit, branch, diff against HEAD), empty where `place` is in no repository."""
    if shutil.which("git") is None:
        return "", "", ""
    commit = _git(place, "rev-parse", "--verify", "HEAD").strip()
    if not commit:
        return "", "", ""
    branch = _git(place, "rev-parse", "--abbrev-ref", "HEAD").strip()
    diff = _git(place, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv")
    untracked = _git(place, "ls-files", "--others", "--exclude-standard", ":/").splitlines()
    if untracked:
        diff += "".join(f"untracked: {name}\n" for name in untracked[:200])
    if len(diff) > DIFF_CAP_CHARS:
        left_out = len(diff) - DIFF_CAP_CHARS
        diff = f"{diff[:DIFF_CAP_CHARS]}\n[{left_out:,} more characters left out]\n"
    return commit, branch, diff


def _git(place: Path, *arguments: str) -> str:
    """Return git's output, empty when it fails, is slow or asks for anything."""
    try:
        done = subprocess.run(
            ["git", "-C", str(place), "-c", "core.fsmonitor=false", *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
