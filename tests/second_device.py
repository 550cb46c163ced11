"""A device ``cuda:0`` that any machine has: tensors on it have their data on the CPU, and meet no CPU's tensor.

For forward passes of whole programs, whose results are then compared with the CPU's: code takes its ways for GPUs, and
an operation with tensors of two devices fails as it would there. PyTorch's autograd does not work on it.

:func:`install` changes torch for the whole process, so call it in a process of the test's own.
"""

from __future__ import annotations

import functools

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
COPIES = {"_to_copy", "copy_", "to"}
"""Operators that may have tensors of two devices."""


class Placed(torch.Tensor):
    """A tensor on ``DEVICE``."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE
        )

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return _run(function, arguments, options or {})

    # PyTorch would ask for CUDA's driver in these, before anything is dispatched.
    def __getitem__(self, index):
        return Placed(self.held[tree_map(_data, index)])

    def __setitem__(self, index, value):
        if isinstance(value, torch.Tensor) and value.dim() and not isinstance(value, Placed):
            raise RuntimeError(f"a tensor on {value.device} is put into one on {DEVICE}")
        self.held[tree_map(_data, index)] = _data(value)

    def contiguous(self, **options):
        return Placed(self.held.contiguous(**options))

    def copy_(self, other, non_blocking=False):
        self.held.copy_(_data(other))
        return self

    def nonzero(self, **options):
        return tree_map(
            lambda x: Placed(x) if isinstance(x, torch.Tensor) else x, self.held.nonzero(**options)
        )

    def __int__(self):
        return int(self.held)

    def __index__(self):
        return self.held.__index__()

    def __float__(self):
        return float(self.held)

    def __bool__(self):
        return bool(self.held)

    def item(self):
        return self.held.item()

    def tolist(self):
        return self.held.tolist()


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
    if (
        any(placed)
        and name not in COPIES
        and any(x.dim() for x, on in zip(tensors, placed, strict=True) if not on)
    ):
        raise RuntimeError(f"{function} of tensors on {DEVICE} and on the CPU")
    here = placed[0] if name == "copy_" else any(placed)
    given = {one.name: place for place, one in enumerate(function._schema.arguments[: len(arguments)])}
    arguments, options = list(arguments), dict(options)
    for where, key in ((arguments, given.get("device")), (options, "device")):
        if key is not None and (where is arguments or options.get(key) is not None):
            here = _is_cuda(where[key])
            where[key] = CPU if here else where[key]
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
    # Otherwise a module's parameters would keep their identity and lose their data when they are moved.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    to, tensor = torch.Tensor.to, torch.tensor
    torch.tensor = lambda data, device=CPU, **options: tensor(data, **options).to(device)

    @functools.wraps(to)
    def indexed(self, *arguments, **options):
        """``to`` with the index of the device, which PyTorch would ask the driver for."""

        def full(value):
            return DEVICE if isinstance(value, str | torch.device) and _is_cuda(value) else value

        return to(self, *map(full, arguments), **{key: full(value) for key, value in options.items()})

    torch.Tensor.to = indexed
