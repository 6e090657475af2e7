"""Arguments of a call as plain JSON and named tensors, and back.

A node is `{"tensor": name}`, `{"value": plain}`, `{"number": "nan"}`, `{"list" | "tuple": [node]}`,
`{"dict": {key: node}}` or `{"left_out": type}`. Nothing is pickled: what is no tensor, no plain
value and no container of these is named and not kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, strided

MAX_DEPTH = 16  # containers in containers
MAX_ITEMS = 10_000  # of one container
MAX_TEXT = 10_000  # characters of one text


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Stands for an argument that is not kept."""

    what: str  # its type, or why


@dataclass(slots=True)
class Packer:
    """Takes arguments apart.

    Attributes:
        max_bytes: of all tensors together; what does not fit any more is left out.
        tensors: that were met, by name.
        left_out: "name: type" of what is not kept.
    """

    max_bytes: float = math.inf
    tensors: dict[str, Tensor] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    _bytes: int = 0

    def pack(self, value: Any, name: str, depth: int = 0) -> dict[str, Any]:
        """Return the node of a value that is called so."""
        if isinstance(value, Tensor):
            return self._pack_tensor(value, name)
        if value is None or isinstance(value, bool | int | float) or type(value) is str:
            return self._pack_plain(value, name)
        if depth < MAX_DEPTH and isinstance(value, Mapping) and len(value) <= MAX_ITEMS:
            if all(type(key) is str for key in value):
                nodes = {k: self.pack(v, f"{name}.{k}", depth + 1) for k, v in value.items()}
                return {"dict": nodes}
        elif depth < MAX_DEPTH and type(value) in (list, tuple) and len(value) <= MAX_ITEMS:
            items = [self.pack(v, f"{name}.{i}", depth + 1) for i, v in enumerate(value)]
            return {"tuple" if type(value) is tuple else "list": items}
        return self._leave_out(name, f"{type(value).__module__}.{type(value).__qualname__}")

    def _pack_tensor(self, value: Tensor, name: str) -> dict[str, Any]:
        if value.layout is not strided or value.is_meta or value.is_quantized:
            return self._leave_out(name, "a tensor that is not dense")
        size = value.numel() * value.element_size()
        if self._bytes + size > self.max_bytes:
            return self._leave_out(name, f"a tensor of {size:,} bytes, too large")
        self._bytes += size
        self.tensors[name] = value
        return {"tensor": name}

    def _pack_plain(self, value: Any, name: str) -> dict[str, Any]:
        if isinstance(value, float) and not math.isfinite(value):
            return {"number": str(value)}
        if isinstance(value, int) and abs(value) >= 2**63:
            return self._leave_out(name, "an integer beyond 64 bits")
        if isinstance(value, str) and (len(value) > MAX_TEXT or not _is_unicode(value)):
            return self._leave_out(name, "a long or broken text")
        return {"value": value}

    def _leave_out(self, name: str, what: str) -> dict[str, Any]:
        self.left_out.append(f"{name}: {what}")
        return {"left_out": what}


def unpack(node: Any, tensors: Mapping[str, Tensor], depth: int = 0) -> Any:
    """Return the value of a node.

    Raises:
        ValueError: this is no node, or its tensor is not there.
    """
    if not isinstance(node, dict) or len(node) != 1 or depth > MAX_DEPTH + 1:
        raise ValueError("no argument")
    kind, held = next(iter(node.items()))
    if kind == "tensor" and isinstance(held, str) and held in tensors:
        return tensors[held]
    if kind == "value" and (held is None or isinstance(held, bool | int | float | str)):
        return held
    if kind == "number" and held in ("nan", "inf", "-inf"):
        return float(held)
    if kind == "left_out":
        return LeftOut(str(held))
    if kind == "dict" and isinstance(held, dict):
        return {str(key): unpack(value, tensors, depth + 1) for key, value in held.items()}
    if kind in ("list", "tuple") and isinstance(held, list):
        items = [unpack(value, tensors, depth + 1) for value in held]
        return tuple(items) if kind == "tuple" else items
    raise ValueError(f"no argument: {str(kind)[:40]}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
