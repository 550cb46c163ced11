"""What the checkpoints remember."""
