"""Files of a ``transformers`` model: a directory, or a name on the hub.

No code that comes with a model is run: weights are read from ``.safetensors`` or, where a model has none (early
revisions of Pythia), from PyTorch's files with ``weights_only``.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from palimpsest.data.artifact import file_digest, json_digest
from palimpsest.data.errors import UserError

SMALL = ["*.json", "*.model", "*.txt"]
"""File patterns of everything but the weights."""


def require() -> None:
    """Check that ``transformers`` and ``safetensors`` are installed.

    Raises:
        UserError: if one is missing, naming the command that installs it.
    """
    try:
        import safetensors  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the package {error.name} is not installed; pip install -e '.[huggingface]'"
        ) from None


def find(
    weights: str, revision: str | None = None, *, whole: bool = True, setting: str = "model.weights"
) -> Path:
    """Directory of a model; for a name on the hub, the cache directory, downloading missing files first.

    Args:
        weights: a directory, or a name such as ``EleutherAI/pythia-160m``.
        revision: branch, tag or commit on the hub.
        whole: with the weights, not only the small files.
        setting: that names the model, for error messages.

    Raises:
        UserError: if there is no such model, or the hub cannot be reached.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UserError(
                f"model.revision={revision} is for names on the hub, but {setting}={weights} is a directory; set "
                "model.revision=null"
            )
        return path
    require()
    import huggingface_hub

    def load(pattern: list[str]) -> Path:
        return Path(huggingface_hub.snapshot_download(weights, revision=revision, allow_patterns=pattern))

    try:
        directory = load(SMALL)
        if whole and not list(load(["*.safetensors"]).glob("*.safetensors")):
            load(["pytorch_model*.bin"])
    except (OSError, ValueError) as error:  # the hub's own errors are such
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        at = f" at revision {revision}" if revision else ""
        raise UserError(
            f"{setting}={weights} does not exist here, and the hub does not give such a model{at} ({first}); give "
            "the directory of a model"
        ) from None
    return directory


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a model's weights.

    Raises:
        UserError: if there are none.
    """
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (path := directory / index).is_file():
            names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
            if missing := sorted(name for name in names if not (directory / name).is_file()):
                raise UserError(f"model.weights={directory}: {missing[0]}, which {index} names, is missing")
            return sorted(directory / name for name in names)
    for pattern in ("model.safetensors", "*.safetensors", "pytorch_model*.bin"):
        if matches := sorted(directory.glob(pattern)):
            return matches
    raise UserError(
        f"model.weights={directory}: there is no .safetensors file in it, nor pytorch_model.bin; other formats can run "
        "code when they are read, so convert the model (transformers: save_pretrained)"
    )


def digest(directory: Path) -> str:
    """Digest of a model's weights, from the digests of their files."""
    return json_digest({file.name: file_digest(file) for file in weight_files(directory)})


class Tensors(Mapping[str, Any]):
    """Name -> tensor of a model, read from its file on access."""

    def __init__(self, directory: Path) -> None:
        require()
        self._from: dict[str, Any] = {}
        for file in weight_files(directory):
            opened = _opened(file)
            self._from.update(dict.fromkeys(opened.keys(), opened))

    def __getitem__(self, name: str) -> Any:
        opened = self._from[name]
        return opened[name] if isinstance(opened, dict) else opened.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._from)

    def __len__(self) -> int:
        return len(self._from)


def _opened(file: Path) -> Any:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            return safe_open(str(file), framework="pt")
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{file} holds no weights that can be read: {' '.join(str(error).split())[:200]}"
        ) from None


def end_of_text(directory: Path, config: Any) -> str | None:
    """Text of the end-of-document token, whose id ``config.json`` names; None if it names none."""
    ends = config.eos_token_id
    wanted = ends[0] if isinstance(ends, list) and ends else ends
    for token in _tokenizer(directory).get("added_tokens", []):
        if token["id"] == wanted:
            return str(token["content"])
    return None


def largest_id(path: Path) -> int | None:
    """Largest id in a ``tokenizer.json``; None if the file is missing or has another format."""
    tokenizer = _tokenizer(path)
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    ids += [token["id"] for token in tokenizer.get("added_tokens", [])]
    return max(ids, default=None)


def own_tokenizer(directory: Path) -> str:
    """Advice to tokenize the corpus as the model of a directory does."""
    return (
        "tokenize the corpus with the model's own tokenizer: corpus.tokenizer.kind=file "
        f"+corpus.tokenizer.path={directory}"
    )


def _tokenizer(path: Path) -> dict[str, Any]:
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        return {}
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # whoever tokenizes with it says so
    return tokenizer if isinstance(tokenizer, dict) else {}
