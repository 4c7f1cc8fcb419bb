"""Everything in torch beyond its public calls: oneDNN's products, sums of attention, subclasses.

    keep_few_kernels()                                       # before the first product
    with by_onednn():
        hidden_BLD = decoder(inputs_embeds=embeds_BLD).last_hidden_state
    output_BGQD, sums_BGQ = attention_and_sums(query_BGQD, key_BGKD, value_BGKD, None, None)

torch multiplies float32 matrices with MKL, which has no kernels of its own for processors of other
vendors, and copies the larger matrix first, which takes most of the time where few rows are read.
`results/performance/floor.py` measures both. Results differ by rounding alone;
`tests/latent/test_torch_contract.py` checks the operator on the installed version.

Shape suffixes: N rows, I inputs, O outputs; B batch, G heads, Q queries, K columns, D head size.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_Product = tuple[Tensor, Tensor, Tensor | None]
"""Rows (..., I), weight (O, I) and bias (O,)."""

_KERNELS_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""How many kernels oneDNN keeps, and how many torch keeps beside it; both 1024 by default."""


def keep_few_kernels() -> None:
    """Let oneDNN keep the kernels of the last products only; no effect after the first product.

    oneDNN compiles a kernel for each shape of a product, and batches of contexts have many shapes.
    A kernel takes half a megabyte of memory; to compile one again takes a quarter of a millisecond.
    Variables that the user has set stay as they are.
    """
    for name, number in _KERNELS_KEPT.items():
        os.environ.setdefault(name, number)


_torch_linear, _torch_addmm = nn.functional.linear, torch.addmm
_lock, _num_open = threading.Lock(), 0


@contextmanager
def by_onednn() -> Iterator[None]:
    """Linear layers inside this block are multiplied by oneDNN, where it can and no gradient flows.

    It does nothing where torch was built without oneDNN. The block holds for all threads, until the
    last open block ends.
    """
    # A TorchFunctionMode would replace nothing, but it sees every operation of a forward, which
    # takes longer than all that oneDNN saves where few rows are read.
    _open_blocks(1)
    try:
        yield
    finally:
        _open_blocks(-1)


def _open_blocks(change: int) -> None:
    """Counts the open blocks, and replaces torch's functions while there is one."""
    global _num_open
    available = torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )
    with _lock:
        _num_open += change
        if available:
            _set(*((_linear, _addmm) if _num_open else (_torch_linear, _torch_addmm)))


def _set(linear: Callable[..., Tensor], addmm: Callable[..., Tensor]) -> None:
    nn.functional.linear, torch.addmm = linear, addmm


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = input, weight, bias
    return _multiply(*product) if _takes(product) else _by_torch(_torch_linear, *product)


def _addmm(*args: Any, **kwargs: Any) -> Tensor:
    """The layers of GPT-2 keep their weights transposed."""
    if len(args) == 3 and not kwargs:
        bias_O, rows_NI, weight_IO = args
        if rows_NI.dim() == 2 and _takes(product := (rows_NI, weight_IO.T, bias_O)):
            return _multiply(*product)
    return _by_torch(_torch_addmm, *args, **kwargs)


def _by_torch(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """What torch's own `function` returns; in it, a tensor of another class may ask for its name.

    Quantised weights compare the function that is called with `torch.nn.functional.linear`.
    """
    _set(_torch_linear, _torch_addmm)
    try:
        return function(*args, **kwargs)
    finally:
        _open_blocks(0)


def _multiply(rows: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight_OI, bias_O, "none", [], "")


def _takes(product: _Product) -> bool:
    rows, weight_OI, bias_O = product
    return (
        all(part is None or _is_plain(part) for part in product)
        and weight_OI.dim() == 2
        and (bias_O is None or (bias_O.shape == weight_OI.shape[:1] and bias_O.is_contiguous()))
        and rows.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        # For a single row by a transposed weight, MKL has the faster kernel.
        and not (weight_OI.stride(0) == 1 and rows.numel() == rows.shape[-1])
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether these are numbers in memory that no gradient flows through."""
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and type(tensor) in (Tensor, nn.Parameter)
        and not (tensor.requires_grad and torch.is_grad_enabled())
    )


def attention_and_sums(
    query_BGQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    mask: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention on a CPU (B, G, Q, D), and the logarithm of its sums of exponentials (B, G, Q).

    Without gradients. A query that may read no column gets zeros, and some finite sum.

    Args:
        mask: added to the scores, (B, 1, Q, K); None: every query reads every column.
    """
    output_BGQD, sums_BGQ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query_BGQD, key_BGKD, value_BGKD, attn_mask=mask, scale=scale
    )
    return output_BGQD, sums_BGQ


def wrapper(kind: type[Tensor], shape: Sequence[int], like: Tensor) -> Any:
    """A tensor of class `kind` with this shape, and the dtype and device of `like`, without data.

    Operations on it reach `__torch_dispatch__` of its class.
    """
    return Tensor._make_wrapper_subclass(kind, tuple(shape), dtype=like.dtype, device=like.device)


def replaced(kind: type[Tensor], by: Callable[[Any], Any], values: Any) -> Any:
    """Nested `values` in which each tensor of class `kind` is replaced by `by(tensor)`."""
    return tree_map_only(kind, by, values)
