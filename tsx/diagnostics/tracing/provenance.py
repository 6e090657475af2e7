"""Where a tensor comes from by autograd's graph, past everything that only changes its form."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

MAX_NODES = 24
_FORM = re.compile(
    r"(View|UnsafeView|ReshapeAlias|AsStrided|Alias|Transpose|T|Permute|Squeeze|Unsqueeze|Slice"
    r"|Select|Expand|Clone|ToCopy|Index|MaskedSelect|SplitWithSizes|Split|UnsafeSplit|Unbind"
    r"|IndexSelect|Take|Narrow|Unfold|Contiguous)Backward\d*"
)
_PRODUCT = re.compile(
    r"(Addmm|Mm|Bmm|Baddbmm|Mv|Addmv|Linear|MkldnnLinear|Convolution|SlowConv2D|CudnnConvolution)"
    r"Backward\d*"
)


def find_source(tensor: Tensor) -> Any:
    """Return the node that made a tensor's values; None where it has no graph."""
    node = tensor.grad_fn
    for _ in range(MAX_NODES):
        if node is None or not _FORM.fullmatch(type(node).__name__):
            return node
        node = node.next_functions[0][0] if node.next_functions else None
    return node


def get_name(node: Any) -> str:
    """Return "Softmax" of a node `SoftmaxBackward0`, "" of none."""
    return re.sub(r"Backward\d*$", "", type(node).__name__) if node is not None else ""


def is_product(node: Any) -> bool:
    """Return whether a node is a product with weights: what it makes has no bounds."""
    return node is not None and bool(_PRODUCT.fullmatch(type(node).__name__))


def count_cut(tensor: Tensor, dim: int) -> int:
    """Return how many entries were sliced away at the front of an axis on the way to a tensor.

    Args:
        tensor: such as logits that were shifted against their labels and flattened.
        dim: of the sliced tensor.
    """
    node, cut = tensor.grad_fn, 0
    for _ in range(MAX_NODES):
        if node is None or not _FORM.fullmatch(type(node).__name__):
            break
        if (
            type(node).__name__.startswith("SliceBackward")
            and getattr(node, "_saved_dim", -1) == dim
        ):
            start = getattr(node, "_saved_start", 0)
            cut += start if 0 <= start < 2**62 else 0
        node = node.next_functions[0][0] if node.next_functions else None
    return cut
