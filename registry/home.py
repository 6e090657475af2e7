"""Where runs are kept."""

from __future__ import annotations

import os
from pathlib import Path


def find_home() -> Path:
    """Return the folder of all runs: TSX_HOME, or the platform's data folder. Not created."""
    named = os.environ.get("TSX_HOME", "")
    if named:
        return Path(os.path.expanduser(named)).absolute()  # "~nobody" stays as it is
    import platformdirs

    return Path(platformdirs.user_data_dir("tsx"))
