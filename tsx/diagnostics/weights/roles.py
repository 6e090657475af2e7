"""Which class of parameters a tensor belongs to, by its name and its neighbours.

Owns the words: "RMSNorm weights", "router weights", "attention q weights". A stack of experts is
one part an expert, a joint matrix of queries, keys and values one part each: what stands still in
one of them is not hidden by the others. A name that says nothing keeps its module's own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

STATISTICS = "running statistics"
EMBEDDING, ROUTER, EXPERTS = "embedding", "router", "routed expert"

_NORM = re.compile(r"norm|(^|_)ln(_|\d|$)|^bn\d*$|_bn\d*$")
_ATTENTION = re.compile(r"att(n|ention)")
_FEED_FORWARD = re.compile(r"moe|ffn|mlp|feed_?forward")
_LETTERS = {  # of attention, by the name of the last module
    "q": re.compile(r"^(q|query|to_q|wq|q_proj|q_lin)$"),
    "k": re.compile(r"^(k|key|to_k|wk|k_proj|k_lin)$"),
    "v": re.compile(r"^(v|value|to_v|wv|v_proj|v_lin)$"),
    "o": re.compile(r"^(o|out|output|dense|proj|to_out|wo|o_proj|out_proj|c_proj|out_lin)$"),
}
_JOINT = re.compile(r"^(qkv|qkv_proj|wqkv|in_proj|query_key_value)$")
_NAMED = (  # the first that fits any module on the way to the tensor
    ("shared expert", re.compile(r"shared")),
    (EXPERTS, re.compile(r"experts?(_|$)")),
    (ROUTER, re.compile(r"router")),
    (EMBEDDING, re.compile(r"emb|^wte$|^wpe$")),
    ("head", re.compile(r"^(lm_)?heads?$|^classifier$")),
)
_STATISTIC = re.compile(r"(^|\.)running_(mean|var)$")


class Part(NamedTuple):
    """A tensor, or a piece of one, and its class.

    Attributes:
        name: of the tensor, with `[3]` or `[q]` where it is a piece.
        role: its class in words, in the plural.
        tensor: the tensor's name.
        rows: first and last (excluded) index of the piece along the first axis; None is all.
        is_expert: the piece is one expert of a stack: its first axis goes.
    """

    name: str
    role: str
    tensor: str
    rows: tuple[int, int] | None = None
    is_expert: bool = False

    def take(self, tensor: Tensor) -> Tensor:
        """Return the piece of its tensor, or of one of the same shape, as a view."""
        if self.rows is None:
            return tensor
        first, last = self.rows
        return tensor[first] if self.is_expert else tensor[first:last]


def iter_parts(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Part]:
    """Yield the parts of a state dict, in its order."""
    for name, shape in shapes.items():
        role, leaf = find_role(name, shapes)
        if role == EXPERTS and len(shape) == 3:
            for expert in range(shape[0]):
                rows = (expert, expert + 1)
                yield Part(f"{name}[{expert}]", f"{role} {leaf}", name, rows, is_expert=True)
        elif role == "attention qkv" and _is_in_thirds(name, shapes):
            size = shape[0] // 3
            for place, letter in enumerate("qkv"):
                rows = (place * size, (place + 1) * size)
                yield Part(f"{name}[{letter}]", f"attention {letter} {leaf}", name, rows)
        else:
            yield Part(name, f"{role} {leaf}".strip(), name)


def find_role(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str]:
    """Return a tensor's class, and "weights", "biases" or nothing where that says all."""
    if _STATISTIC.search(name):
        return STATISTICS, ""
    modules, kind = _split(name)
    last = modules[-1] if modules else ""
    if _NORM.search(last) and len(shapes[name]) <= 1:
        return _name_norm(name, last, shapes), kind
    if _is_gate(modules):
        return ROUTER, kind
    for role, pattern in _NAMED:
        if any(pattern.search(module) for module in modules):
            return role, kind
    if any(_ATTENTION.search(module) for module in modules):
        if _JOINT.search(last):
            return "attention qkv", kind
        for letter, pattern in _LETTERS.items():
            if pattern.search(last):
                return f"attention {letter}", kind
        return "attention", kind
    return last, kind


def _split(name: str) -> tuple[list[str], str]:
    """Return the modules on the way, lower case and without numbers; what the leaf is."""
    *modules, leaf = name.lower().split(".")
    kind = "biases" if re.search(r"(^|_)bias", leaf) else "weights"
    stem = re.sub(r"_?(weight|bias)$", "", leaf)  # in_proj_weight
    named = [module for module in (*modules, stem) if module and not module.isdigit()]
    return named, kind


def _name_norm(name: str, last: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the kind of norm: its neighbours tell."""
    module = name.rpartition(".")[0]
    if f"{module}.running_mean" in shapes:
        return "BatchNorm"
    if "rms" in last or f"{module}.bias" not in shapes:
        return "RMSNorm"  # the one that has no bias
    return "LayerNorm"


def _is_gate(modules: list[str]) -> bool:
    """Return whether this is a router that is called gate: right under a feed-forward part."""
    return (
        len(modules) > 1
        and modules[-1] == "gate"
        and _FEED_FORWARD.search(modules[-2]) is not None
        and not any("expert" in module for module in modules)
    )


def _is_in_thirds(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether queries, keys and values are equal thirds of the rows."""
    weight = shapes.get(re.sub("bias$", "weight", name), shapes[name])
    return len(weight) == 2 and weight[0] == 3 * weight[1]
