"""Sources of documents, one module per kind. The order of documents depends only on the source."""

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
