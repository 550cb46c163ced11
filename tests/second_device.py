"""A device ``cuda:0`` that any machine has: tensors on it have their data on the CPU, and meet no CPU's tensor.

For whole programs, training among them, whose results are then compared with the CPU's: code takes its ways for GPUs,
and an operation with tensors of two devices fails as it would there. Python sees a tensor of the GPU; PyTorch's C++
sees one of the CPU, because autograd would ask for CUDA's driver.

:func:`install` changes torch for the whole process, so call it in a process of the test's own.
"""

from __future__ import annotations

import functools
from itertools import pairwise

import torch
from torch.nn import functional
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
COPIES = {"_to_copy", "copy_", "to"}
"""Operators that may have tensors of two devices."""
FUSED = {"_fused_adam_", "_fused_adamw_"}
"""Operators whose numbers, too, have to be on the device."""


class Placed(torch.Tensor):
    """A tensor on ``DEVICE``."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        with torch.inference_mode(False):  # views of weights are made in it, and may not be its tensors
            return torch.Tensor._make_wrapper_subclass(
                cls, held.shape, strides=held.stride(), dtype=held.dtype
            )

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return _run(function, arguments, options or {})

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    data = property(lambda self: self.detach(), lambda self, value: setattr(self, "held", value.held))

    def type(self, dtype=None, **options):
        if dtype is None:
            return self.held.type().replace("torch.", "torch.cuda.", 1)
        return super().type(dtype, **options)

    def cpu(self, **_):
        return self.to(CPU)

    def tolist(self):
        return self.held.tolist()

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy


@functools.wraps(varlen.varlen_attn)
def attend_by_document(query, key, value, starts, _, *__, scale, window_size, enable_gqa):
    """``varlen_attn``, of which CPUs have no kernel: causal attention of each document for itself."""
    assert starts.dtype == torch.int32
    assert window_size == (-1, 0)
    packed = [x.transpose(0, 1)[None] for x in (query, key, value)]
    outputs = [
        functional.scaled_dot_product_attention(
            *(x[:, :, start:end] for x in packed), is_causal=True, scale=scale, enable_gqa=enable_gqa
        )
        for start, end in pairwise(starts.tolist())
    ]
    return torch.cat(outputs, 2)[0].transpose(0, 1)


class _Move(torch.autograd.Function):
    """The same data on the other device."""

    @staticmethod
    def forward(context, x):
        return x.held.clone() if isinstance(x, Placed) else Placed(x.clone())

    @staticmethod
    def backward(context, gradient):
        return _Move.apply(gradient)


def _data(value):
    return value.held if isinstance(value, Placed) else value


def _is_cuda(device):
    return not isinstance(device, int) and torch.device(device).type == "cuda"


def _run(function, arguments, options):
    """An operator, on the data; its results are on the device that it names, else on that of its tensors."""
    if function.namespace == "c10d":
        return function(*tree_map(_data, arguments), **options)
    name = function._schema.name.split("::")[1]
    tensors = [x for x in tree_iter((arguments, options)) if isinstance(x, torch.Tensor)]
    placed = [isinstance(x, Placed) for x in tensors]
    mixed = any(x.dim() or name in FUSED for x, on in zip(tensors, placed, strict=True) if not on)
    if any(placed) and name not in COPIES and mixed:
        raise RuntimeError(f"{function} of tensors on {DEVICE} and on the CPU")
    here = placed[0] if name == "copy_" else any(placed)
    given = {one.name: place for place, one in enumerate(function._schema.arguments[: len(arguments)])}
    arguments, options = list(arguments), dict(options)
    for where, key in ((arguments, given.get("device")), (options, "device")):
        if key is not None and (where is arguments or options.get(key) is not None):
            # C++ names the device, which it takes for the CPU, when it converts to another dtype.
            here = here if name == "_to_copy" else _is_cuda(where[key])
            where[key] = CPU
    options.pop("pin_memory", None)
    data, named = tree_map(_data, (arguments, options))
    if function is torch.ops.aten.mm.dtype:  # CPUs have no product that is summed in another dtype
        made = torch.mm(data[0].to(data[2]), data[1].to(data[2]))
    elif name == "_pin_memory":
        made = data[0]
    else:
        made = function(*data, **named)
    if "out" in options:
        return options["out"]
    if function._schema.is_mutable and isinstance(made, torch.Tensor) and made is data[0]:
        return arguments[0]
    return tree_map(lambda x: Placed(x) if here and isinstance(x, torch.Tensor) else x, made)


class Machine(TorchDispatchMode):
    """Dispatch mode in which tensors can be made on ``DEVICE``."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return _run(function, arguments, options or {})


def install():
    """Let this process have one GPU, inside ``with Machine():``."""
    cuda = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.set_device = lambda _device: None
    cuda.current_device = lambda: DEVICE  # not its index, which PyTorch would look up
    cuda.synchronize = lambda *_: None
    cuda.get_rng_state = lambda *_: torch.get_rng_state()
    cuda.manual_seed = lambda *_: None
    cuda.default_generators = (torch.Generator(),)
    cuda.get_device_capability = lambda *_: (8, 0)
    cuda.get_device_name = lambda *_: "pretended"
    cuda.max_memory_allocated = lambda *_: 0
    varlen.varlen_attn = attend_by_document
    # Otherwise a module's parameters would keep their identity and lose their data when they are moved.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    to, tensor = torch.Tensor.to, torch.tensor

    def made(data, device=CPU, **options):
        return tensor(tree_map(_data, data), **options).to(device)

    torch.tensor = made

    @functools.wraps(to)
    def moved(self, *arguments, **options):
        """``to`` another device, and then to another dtype."""
        given = [options.get("device"), options.get("dtype"), *arguments]
        if isinstance(given[2:] and given[2], torch.Tensor):
            given += [given[2].device, given[2].dtype]
        for device in (x for x in given if isinstance(x, str | torch.device)):
            if _is_cuda(device) != isinstance(self, Placed):
                self = _Move.apply(self)
        dtype = next((x for x in given if isinstance(x, torch.dtype)), self.dtype)
        copies = {key: options[key] for key in ("copy", "memory_format") if key in options}
        return to(self, dtype, **copies)

    torch.Tensor.to = moved
    torch.Tensor.cuda = lambda self, *_, **__: self.to(DEVICE)
