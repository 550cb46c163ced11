"""Models of ``transformers``: their files, shapes and names of weights, and export of checkpoints to them."""
