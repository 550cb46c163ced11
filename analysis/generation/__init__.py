"""Continuations that checkpoints write: prompts and settings, decoding through ``transformers``, and their store.

``continuations`` reads the store without torch; ``decode`` and ``store`` import it.
"""
