"""Models of ``transformers``: files, shapes, names of weights, and our checkpoints as one of them."""
