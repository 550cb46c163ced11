"""Import of megatron-core 0.16.1 and 0.19.x on machines without Triton."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType


class _PagedStash(MetaPathFinder, Loader):
    """Import finder that supplies one module of megatron-core without its kernels."""

    NAME = "megatron.core.transformer.moe.ops.paged_stash"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Specification of the replaced module; None for any other name."""
        return spec_from_loader(fullname, self) if fullname == self.NAME else None

    def exec_module(self, module: ModuleType) -> None:
        """Define the names that megatron-core imports from the module."""
        module.__dict__.update(
            GLOBAL_BLOCK_SIZE=1024, paged_stash_copy_kernel=None, paged_stash_pop_kernel=None
        )


@cache
def make_importable() -> None:
    """Make megatron-core importable without Triton, as with PyTorch's CPU builds; call it before the import.

    From 0.18 on megatron-core's pipeline schedules import Triton kernels of a memory pool for experts, which are not
    used here. Only the module of these kernels is replaced; Triton itself stays unavailable to other code.
    """
    if find_spec("triton") is None:
        sys.meta_path.insert(0, _PagedStash())
