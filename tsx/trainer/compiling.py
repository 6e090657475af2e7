"""torch.compile for the training step, block by block.

Each block is compiled in place and whole (`fullgraph`): parameters and checkpoints keep their names
and a graph break is an error, not a slow step. Blocks share one graph, since their shapes and code
are the same. Only the training step is compiled: scoring runs eagerly, so that batches of another
size cost no compile of their own and scores are those of an eager run with the same weights.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from tsx.config import CompileMode, RunConfig
from tsx.errors import ConfigError, TsxError
from tsx.model.forecaster import Forecaster
from tsx.model.grouped import has_grouped_product

OFF = "--set perf.compile=false"
# Modes that capture CUDA graphs take two more steps to settle: a warm-up and the capture.
GRAPH_MODES = (CompileMode.REDUCE_OVERHEAD, CompileMode.MAX_AUTOTUNE)


def check_can_compile(config: RunConfig, device: torch.device) -> None:
    """Find out before the first step whether the compiler has what it needs.

    Raises:
        ConfigError: `perf.compile` is set and there is no C++ compiler (CPU) or no Triton (CUDA).
    """
    if not config.perf.compile:
        return
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "[perf] compile=true needs Triton on CUDA, and the package triton is not installed; "
            "install it (pip install triton)",
            next_command=OFF,
        )
    if device.type == "cpu" and find_cpp_compiler() is None:
        raise ConfigError(
            f"[perf] compile=true needs a C++ compiler on a CPU and {_get_cpp_name()!r} is not "
            "there; install one (apt install g++, dnf install gcc-c++, xcode-select --install) or "
            "name one in CXX",
            next_command=OFF,
        )


def find_cpp_compiler() -> str | None:
    """Return the path of the compiler that torch would start, or None."""
    return shutil.which(_get_cpp_name())


def _get_cpp_name() -> str:
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def compile_blocks(model: Forecaster, mode: CompileMode) -> None:
    """Mark each block to be compiled at its first training step; shapes are constant from then."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        has_grouped_product(device.index)  # tried now: under the compiler's eyes it could not be
    for block in model.blocks:
        block.compile(mode=str(mode), fullgraph=True, dynamic=False)


def eager() -> AbstractContextManager[object]:
    """Return a context in which compiled blocks run as they are written."""
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def explain_compile_errors() -> Iterator[None]:
    """Turn a failure of the compiler into an error that says how to do without.

    Raises:
        TsxError: what the compiler said, in one line.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = " ".join(lines[:2]) or type(error).__name__  # who raised, then what
        raise TsxError(
            f"[perf] compile=true: compiling the model failed: {said[:300]}", next_command=OFF
        ) from error
