"""The engine on megatron-core."""
