"""tsx trains small mixture-of-experts time-series models and explains what goes wrong in them.

And it records any training loop:

    import tsx
    run = tsx.init(project="toy", name="first", config={"lr": 1e-3})
    run.log({"train/loss": loss})
    run.finish()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "compare_variants", "compute", "finish", "histogram", "init", "log", "watch"]

if TYPE_CHECKING:
    from tsx.api import compute, finish, init, log, watch
    from tsx.diagnostics.variants import compare_variants
    from tsx.recording.run import Run
    from tsx.recording.values import histogram

# Importing tsx costs nothing; what is behind a door is loaded when it is first used.
_DOORS = {
    **dict.fromkeys(("compute", "finish", "init", "log", "watch"), "tsx.api"),
    "Run": "tsx.recording.run",
    "compare_variants": "tsx.diagnostics.variants",
    "histogram": "tsx.recording.values",
}


def __getattr__(name: str) -> Any:
    """Return what is behind a lazy door."""
    if name not in _DOORS:
        raise AttributeError(f"module 'tsx' has no attribute {name!r}")
    found = getattr(importlib.import_module(_DOORS[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the names of the module, the doors included."""
    return sorted({*globals(), *__all__})
