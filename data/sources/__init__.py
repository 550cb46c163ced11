"""Sources of documents: one module a kind, each giving them in an order that depends on nothing local."""

from palimpsest.data.sources import docs, hub, lines, parquet, token_files
from palimpsest.data.sources.base import (
    FILE_KINDS,
    READERS,
    Document,
    Part,
    Progress,
    SourceConfig,
    all_files,
    files,
    inputs,
    nothing,
    read,
    read_part,
    split,
)

__all__ = [
    "FILE_KINDS",
    "READERS",
    "Document",
    "Part",
    "Progress",
    "SourceConfig",
    "all_files",
    "docs",
    "files",
    "hub",
    "inputs",
    "lines",
    "nothing",
    "parquet",
    "read",
    "read_part",
    "split",
    "token_files",
]
