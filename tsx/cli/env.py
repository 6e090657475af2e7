"""`tsx env`: what a bug report needs to know of this machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import tsx
from tsx.cli import output

VARIABLES = (
    "TSX_HOME",
    "TSX_REGISTRY",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "NO_COLOR",
    "TERM",
)
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
PROBE_TIMEOUT_S = 60

# Runs in a process of its own: importing torch takes seconds and may crash on a broken driver.
_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
mps = torch.backends.mps.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({
    "default": "cuda" if cuda else "mps" if mps else "cpu",
    "cuda_devices": names,
    "cuda": torch.version.cuda,
    "mps": mps,
    "threads": torch.get_num_threads(),
    "bf16": bool(cuda and torch.cuda.is_bf16_supported()),
}))
"""


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    no_device: Annotated[
        bool, typer.Option("--no-device", help="Do not start a process that asks torch.")
    ] = False,
) -> None:
    """Show versions, devices and paths, for bug reports.

    No secret is shown: of tokens only whether they are set, of the registry's URL no password.
    """
    facts = collect()
    facts["device"] = {"asked": False} if no_device else probe_device()
    if as_json:
        output.json(facts)
        return
    rows = [
        (section, name, _show(value))
        for section, values in facts.items()
        for name, value in values.items()
    ]
    output.table(["", "name", "value"], rows)
    if facts["tokens"]["HUGGINGFACE_HUB_TOKEN"]:
        output.warn(
            "HUGGINGFACE_HUB_TOKEN is set, but huggingface_hub reads HF_TOKEN: export that instead"
        )


def collect() -> dict[str, dict[str, Any]]:
    """Return section -> name -> value of everything that needs no torch."""
    from registry.redact import Redactor

    redactor = Redactor.from_environ(os.environ)
    return {
        "versions": _versions(),
        "machine": {
            "platform": platform.platform(),
            "cpu": platform.machine(),
            "cores": os.cpu_count(),
            "usable_cores": _count_usable_cores(),
            "memory_gib": _find_memory_gib(),
        },
        "paths": {name: redactor.text(path) for name, path in _paths().items()},
        "terminal": {
            "stdout": output.is_terminal(sys.stdout),
            "stderr": output.is_terminal(sys.stderr),
            "color": output.use_color(sys.stdout),
            "encoding": sys.stdout.encoding,
            "size": "{}x{}".format(*output.terminal_size()),
        },
        "variables": {
            name: redactor.text(_read_variable(name)) for name in VARIABLES if name in os.environ
        },
        "tokens": {name: bool(os.environ.get(name)) for name in TOKENS},
    }


def probe_device(timeout_s: float = PROBE_TIMEOUT_S) -> dict[str, Any]:
    """Return what torch sees, asked in a process of its own; `error` where that failed."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            return {"asked": True, "error": f"exit status {done.returncode}: {last}"}
        return {"asked": True, **json.loads(done.stdout.strip().rpartition("\n")[2])}
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {"asked": True, "error": str(error)}


def _versions() -> dict[str, str]:
    """Return the version of tsx, python and every library, the missing ones named as such."""
    from tsx.launch.provenance import LIBRARIES, list_versions

    found = list_versions()
    return {name: found.get(name, "not installed") for name in ("tsx", "python", *LIBRARIES)}


def _paths() -> dict[str, str]:
    """Return where things lie."""
    from registry.home import find_home
    from tsx.cli.expansion import list_recipe_folders

    home = find_home()
    return {
        "tsx": str(Path(tsx.__file__).parent),
        "python": sys.executable,
        "home": str(home),
        "home_exists": str(home.is_dir()).lower(),
        "registry": _read_variable("TSX_REGISTRY") or f"sqlite:///{home / 'registry.db'}",
        "recipes": os.pathsep.join(map(str, list_recipe_folders())),
    }


def _read_variable(name: str) -> str:
    """Return an environment variable; of a registry's URL, malformed or not, no password."""
    from registry.redact import hide_url_password

    value = os.environ.get(name, "")
    return hide_url_password(value) if name == "TSX_REGISTRY" else value


def _count_usable_cores() -> int | None:
    """Return the cores this process may run on, where the platform tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _find_memory_gib() -> float | None:
    """Return the machine's memory in GiB, where the platform tells."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError):
        return None


def _show(value: object) -> str:
    """Return one value as it stands in the table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
