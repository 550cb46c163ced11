"""Counter of the bytes of live tensors and of the bytes that collectives send, as a PyTorch dispatch mode."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._C._distributed_c10d import FakeWork, ProcessGroup, Work
from torch.utils._python_dispatch import TorchDispatchMode

BLOCK = 512
"""Granularity of PyTorch's CUDA allocator, bytes."""


def _once(_ranks: int) -> float:
    return 1.0


def _shares(ranks: int) -> float:
    return (ranks - 1) / ranks


def _twice_shares(ranks: int) -> float:
    return 2 * (ranks - 1) / ranks


_COLLECTIVES = {
    "allreduce_": ("all-reduce", 0, _twice_shares),
    "allreduce_coalesced_": ("all-reduce", 0, _twice_shares),
    "_allgather_base_": ("all-gather", 0, _shares),
    "allgather_": ("all-gather", 0, _shares),
    "allgather_into_tensor_coalesced_": ("all-gather", 0, _shares),
    "_reduce_scatter_base_": ("reduce-scatter", 1, _shares),
    "reduce_scatter_": ("reduce-scatter", 1, _shares),
    "reduce_scatter_tensor_coalesced_": ("reduce-scatter", 1, _shares),
    "alltoall_base_": ("all-to-all", 1, _shares),
    "broadcast_": ("broadcast", 0, _once),
    "send": ("send", 0, _once),
}
"""Operator of c10d -> name, argument with all of the data, and the share of it that each rank sends in ring algorithms
(Thakur et al., 2005)."""


class Meter(TorchDispatchMode):
    """Dispatch mode that counts storages, by the kind set when they were created, and collectives, which become no-ops.

    Storages are counted with the bytes that PyTorch's CUDA allocator would allocate; views are not counted. Tensors may
    be fake or real; temporary allocations inside operators are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kind = "other"
        """Kind of the storages created from now on."""
        self.every = "step"
        """Frequency of the collectives called from now on: every ``step`` or every ``micro-batch``."""
        self.held: Counter[str] = Counter()
        """Live bytes, by kind."""
        self.peak: dict[str, int] = {}
        """Live bytes, by kind, at the peak since ``reset_peak``."""
        self.sent: Counter[tuple[str, str, str]] = Counter()
        """Bytes that this rank sent, by (frequency, name of the process group, collective)."""
        self._known: dict[int, tuple[int, str]] = {}
        self._now = self._most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count its new storages; operators of c10d are only counted."""
        if func.namespace == "c10d":
            return self._collective(func, args)
        output = func(*args, **(kwargs or {}))
        self._count(output)
        return output

    @contextmanager
    def counting(self, kind: str) -> Iterator[None]:
        """Context in which new storages count as the given kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def relabel(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor's storage as another kind."""
        key = id(tensor.untyped_storage())
        if key in self._known:
            size, before = self._known[key]
            self._known[key] = size, kind
            self.held[before] -= size
            self.held[kind] += size

    def reset_peak(self) -> None:
        """Reset the peak to the live bytes."""
        self._most, self.peak = self._now, dict(self.held)

    def _count(self, output: Any) -> None:
        if isinstance(output, Tensor):
            storage = output.untyped_storage()
            key = id(storage)
            if key in self._known:
                return
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self._known[key] = size, self.kind
            weakref.finalize(storage, self._drop, key)
            self.held[self.kind] += size
            self._now += size
            if self._now > self._most:
                self._most, self.peak = self._now, dict(self.held)
        elif isinstance(output, list | tuple):
            for one in output:
                self._count(one)

    def _drop(self, key: int) -> None:
        size, kind = self._known.pop(key)
        self.held[kind] -= size
        self._now -= size

    def _collective(self, func: Any, args: Sequence[Any]) -> Any:
        """Count a collective, and return a finished work handle."""
        schema = func._schema
        name = schema.name.removeprefix("c10d::")
        if name in _COLLECTIVES:
            label, whole, share = _COLLECTIVES[name]
            place = next(k for k, one in enumerate(schema.arguments) if one.name == "process_group")
            group = ProcessGroup.unbox(args[place])
            if group.size() > 1:
                size = round(_bytes(args[whole]) * share(group.size()))
                self.sent[self.every, group.group_name, label] += size
        done = Work.boxed(FakeWork())
        return done if len(schema.returns) == 1 else (args[0], done)


def _bytes(tensors: Any) -> int:
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(_bytes(one) for one in tensors)
