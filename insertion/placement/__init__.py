"""Placement: the assignment of items to arms, and the windows and offsets of their exposures."""
