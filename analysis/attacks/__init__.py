"""Membership attacks that need passes of their own: behind other texts, over altered copies, or backwards."""
