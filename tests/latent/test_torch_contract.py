"""Products by oneDNN are torch's own to rounding, and are left to torch wherever they differ."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from tiny import random_ids, tiny_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.streams import Stream
from lm_eval_latentref.latent.torch_seams import attention_and_sums, by_onednn, replaced, wrapper

BY_ONEDNN = "mkldnn::_linear_pointwise"
LAYERS = (nn.Linear(37, 50), nn.Linear(37, 50, bias=False), Conv1D(50, 37))

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


MEMORY_OF_KERNELS = """
import ctypes
import torch
from lm_eval_latentref.latent.torch_seams import by_onednn, keep_few_kernels

fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks used fordblks keepcost".split()
class Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in fields]
read = ctypes.CDLL(None).mallinfo2
read.restype = Memory

keep_few_kernels()
layer = torch.nn.Linear(64, 64)
with torch.no_grad(), by_onednn():
    for num_rows in range(1, 201):
        layer(torch.zeros(num_rows, 64))
        if num_rows % 100 == 0:
            print(read().used)
"""


class Seen(TorchDispatchMode):
    """How often each operator was called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def by_both(layer, rows):
    with by_onednn(), Seen() as seen:
        ours = layer(rows)
    return ours, layer(rows), BY_ONEDNN in seen.names


@pytest.mark.contract
@pytest.mark.parametrize("layer", LAYERS, ids=("linear", "no bias", "transposed"))
@pytest.mark.parametrize("shape", [(16, 37), (3, 5, 37), (1, 2, 3, 37), (300, 37)], ids=str)
def test_products_are_those_of_torch_to_rounding(layer, shape):
    """`torch.ops.mkldnn._linear_pointwise` on weights in torch's layout."""
    with torch.no_grad():
        ours, expected, used = by_both(layer, torch.randn(shape))
    assert used
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_rows_with_gaps_and_weights_that_are_slices_are_read_right():
    wide = nn.Linear(74, 50)
    weight_OI, rows = wide.weight[:, ::2], torch.randn(4, 9, 37).transpose(0, 1)[:, ::2]
    with torch.no_grad(), by_onednn(), Seen() as seen:
        ours = nn.functional.linear(rows, weight_OI)
    assert BY_ONEDNN in seen.names
    torch.testing.assert_close(ours, nn.functional.linear(rows, weight_OI), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS, ids=("linear", "no bias", "transposed"))
def test_where_gradients_flow_they_are_those_of_torch(layer):
    rows = torch.randn(6, 37, requires_grad=True)
    ours, expected, used = by_both(layer, rows)
    assert not used
    wanted = torch.autograd.grad(expected.square().sum(), rows)
    assert torch.equal(torch.autograd.grad(ours.square().sum(), rows)[0], wanted[0])


@pytest.mark.parametrize("layer", LAYERS, ids=("linear", "no bias", "transposed"))
def test_products_are_torchs_own_after_the_block_however_it_ends(layer):
    usual = nn.functional.linear, torch.addmm
    with by_onednn():
        with pytest.raises(ZeroDivisionError), by_onednn():
            raise ZeroDivisionError
        with torch.no_grad(), Seen() as seen:
            layer(torch.randn(3, 37))
        assert BY_ONEDNN in seen.names  # the inner block has not ended the outer one
    with torch.no_grad(), Seen() as seen:
        layer(torch.randn(3, 37))
    assert BY_ONEDNN not in seen.names
    assert (nn.functional.linear, torch.addmm) == usual


def test_blocks_of_several_threads_may_overlap():
    usual, first, second = nn.functional.linear, by_onednn(), by_onednn()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert nn.functional.linear is not usual
    second.__exit__(None, None, None)
    assert nn.functional.linear is usual


class Quantised(torch.Tensor):
    """A weight with a product of its own, which torch calls by its function."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            return torch.full((3, 50), 7.0)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_weights_of_other_classes_multiply_as_they_do_alone():
    with torch.no_grad(), by_onednn():
        product = nn.functional.linear(
            torch.randn(3, 37), torch.randn(50, 37).as_subclass(Quantised)
        )
        assert (product == 7).all()
        layer = LAYERS[0]
        with Seen() as seen:
            layer(torch.randn(3, 37))
    assert BY_ONEDNN in seen.names


@pytest.mark.parametrize("bias_O", [torch.arange(100.0)[::2], torch.ones(1).expand(50)])
def test_a_bias_with_gaps_is_read_right(bias_O):
    rows, weight_OI = torch.randn(3, 37), torch.randn(50, 37)
    with torch.no_grad(), by_onednn():
        ours = nn.functional.linear(rows, weight_OI, bias_O)
    torch.testing.assert_close(ours, rows @ weight_OI.T + bias_O, rtol=1e-5, atol=1e-5)


def test_arguments_may_be_given_by_name():
    rows, weight_OI, bias_O = torch.randn(3, 37), torch.randn(50, 37), torch.randn(50)
    expected = torch.addmm(bias_O, rows, weight_OI.T)
    with torch.no_grad(), by_onednn():
        by_linear = nn.functional.linear(input=rows, weight=weight_OI, bias=bias_O)
        by_addmm = torch.addmm(bias_O, mat1=rows, mat2=weight_OI.T, beta=1)
    torch.testing.assert_close(by_linear, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_addmm, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_numbers_are_left_to_torch(dtype):
    with torch.no_grad():
        ours, expected, used = by_both(nn.Linear(8, 4, dtype=dtype), torch.randn(3, 8, dtype=dtype))
    assert not used
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("layer", LAYERS, ids=("linear", "no bias", "transposed"))
def test_a_single_row_is_left_to_torch_if_the_weight_is_transposed(layer):
    with torch.no_grad():
        ours, expected, used = by_both(layer, torch.randn(1, 1, 37))
    assert used != isinstance(layer, Conv1D)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_autocast_and_empty_batches_are_left_to_torch():
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert by_both(LAYERS[0], torch.randn(3, 37))[0].dtype == torch.bfloat16
    with torch.no_grad():
        assert by_both(LAYERS[0], torch.randn(0, 37))[0].shape == (0, 50)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_network_reads_and_projects_by_onednn(family):
    network = Network(tiny_model(family))
    with torch.no_grad(), Seen() as seen:
        hidden_BLD = Stream(network).feed(network.embed(torch.tensor([random_ids(5, seed=1)])))
        num_read = seen.names.count(BY_ONEDNN)
        network.project(hidden_BLD[:, -1])
    assert num_read
    assert seen.names.count(BY_ONEDNN) == num_read + 1
    assert not {"aten::addmm", "aten::mm", "aten::linear"} & set(seen.names)


@pytest.mark.contract
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_sums_are_those_of_a_softmax(dtype, masked):
    """`torch.ops.aten._scaled_dot_product_flash_attention_for_cpu` and its second result."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, size, 16, dtype=dtype) for size in (5, 70, 70))
    mask = torch.zeros(2, 1, 5, 70, dtype=dtype)
    if masked:
        mask[..., 1, 9:] = mask[1, ..., :40] = -torch.inf
    output, sums = attention_and_sums(query, key, value, mask if masked else None, 0.3)
    scores = 0.3 * query.double() @ key.double().transpose(-1, -2) + mask.double()
    expected = scores.softmax(-1) @ value.double()
    reads = scores.isfinite().any(-1)
    close = {"rtol": 0.0, "atol": 3e-2 if dtype == torch.bfloat16 else 1e-5}
    torch.testing.assert_close(output.double()[reads], expected[reads], **close)
    torch.testing.assert_close(sums.double()[reads], scores.logsumexp(-1)[reads], **close)
    assert output.isfinite().all()
    assert sums.isfinite().all()
    assert reads.all() != masked


class Halves(torch.Tensor):
    """A tensor of two parts, whose operations work on the parts together."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = replaced(cls, lambda each: torch.cat(each.parts), (args, kwargs or {}))
        return func(*args, **kwargs)


@pytest.mark.contract
def test_a_wrapper_has_shape_and_dtype_and_its_operations_reach_its_class():
    """`Tensor._make_wrapper_subclass` and `torch.utils._pytree.tree_map_only`."""
    parts = [torch.ones(2, 3, dtype=torch.bfloat16), torch.zeros(1, 3, dtype=torch.bfloat16)]
    halves = wrapper(Halves, (3, 3), parts[0])
    halves.parts = parts
    assert (type(halves), halves.shape, halves.dtype) == (Halves, (3, 3), torch.bfloat16)
    assert torch.stack([halves, halves]).equal(torch.cat(parts).expand(2, 3, 3))


@pytest.mark.contract
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory in use is glibc's number")
def test_memory_does_not_grow_with_the_number_of_shapes_multiplied():
    """ONEDNN_PRIMITIVE_CACHE_CAPACITY of oneDNN and LRU_CACHE_CAPACITY of torch."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_KERNELS], capture_output=True, text=True, check=True
    )
    after_100, after_200 = map(int, done.stdout.split())
    assert after_200 - after_100 < 5 * 2**20  # a hundred kernels take ten times as much
