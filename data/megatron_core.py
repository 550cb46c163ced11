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
    """Finds one module of megatron-core, with no kernels in it."""

    NAME = "megatron.core.transformer.moe.ops.paged_stash"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module of that name, or nothing."""
        return spec_from_loader(fullname, self) if fullname == self.NAME else None

    def exec_module(self, module: ModuleType) -> None:
        """Define the names that megatron-core imports from the module."""
        module.__dict__.update(
            GLOBAL_BLOCK_SIZE=1024, paged_stash_copy_kernel=None, paged_stash_pop_kernel=None
        )


@cache
def make_importable() -> None:
    """Make megatron-core importable where Triton is missing, as with PyTorch's CPU builds; call it before the import.

    From 0.18 on its pipeline schedules import Triton kernels of a memory pool for experts that nothing here uses. The
    module of those kernels alone is replaced: Triton itself stays absent for whoever looks for it.
    """
    if find_spec("triton") is None:
        sys.meta_path.insert(0, _PagedStash())
