"""The scorer's product with the output matrix on a device that is not the CPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from palimpsest.analysis.scoring.models import matrix


class Operations(TorchDispatchMode):
    """Lists the float dtypes that each operation reads."""

    def __init__(self):
        super().__init__()
        self.read = {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        tensors = [one for one in tree_iter(arguments) if isinstance(one, torch.Tensor)]
        self.read.setdefault(str(function), set()).update(one.dtype for one in tensors)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products_are_not_made_of_float32_copies(dtype):
    """Without TF32 these would take as long as the rest of a model of 1B parameters."""
    head, states = (
        torch.empty(40, 16, dtype=dtype, device="meta"),
        torch.empty(8, 16, dtype=dtype, device="meta"),
    )
    with torch.inference_mode(), Operations() as seen:
        logits = matrix(head, 32)(states)
    assert (logits.shape, logits.dtype, logits.device.type) == ((8, 32), torch.float32, "meta")
    assert seen.read["aten.mm.dtype"] == {dtype}
    assert not [name for name in seen.read if "_to_copy" in name]


@pytest.mark.parametrize(("head", "states"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_products_of_two_dtypes_are_made_in_float32(head, states):
    logits = matrix(torch.empty(40, 16, dtype=getattr(torch, head), device="meta"), 32)(
        torch.empty(8, 16, dtype=getattr(torch, states), device="meta")
    )
    assert (logits.shape, logits.dtype) == ((8, 32), torch.float32)
