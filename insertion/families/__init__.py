"""Families of items, one file each."""
