"""Training engine on megatron-core."""

from palimpsest.data import megatron_core

megatron_core.make_importable()
