"""What only looks changes nothing, and what was done is not done again: no plan or corpus is ever written over."""

import hashlib


def files(place):
    return {
        path.relative_to(place): (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns)
        for path in sorted(place.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def test_looking_and_repeating(prepared):
    """A dry run, showing, the power of the design, and every stage once more."""
    prepared.ok("plan")  # a corpus that was copied makes the order of its windows anew
    before = files(prepared.path / "runs" / "corpora"), files(prepared.directory() / "plan")
    item = "item=ghost-00000"
    for program, *arguments in (
        ("train", "dry_run=true"),
        ("train", "dry_run=true", "insertion.doses=[0,2,8]"),
        ("plan", "show"),
        ("plan", "show", item),
        ("plan", "power=true"),
        ("prepare",),
        ("plan",),
    ):
        prepared.ok(program, *arguments)
        assert (files(prepared.path / "runs" / "corpora"), files(prepared.directory() / "plan")) == before
