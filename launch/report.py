"""Placeholder until wired."""


def report(experiment: object) -> None:
    """Wired below."""
