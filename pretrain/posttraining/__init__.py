"""Post-training: a method turns a checkpoint into a checkpoint (unlearning, edits, relearning)."""
