"""Settings from a model of ``transformers``: its shape and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import DEFAULT_EOD, TokenizerConfig
from palimpsest.pretrain.config import ModelConfig
from palimpsest.pretrain.huggingface import files, shapes

OPTION = "from_huggingface"
"""Option of the group ``model`` whose shape is read from ``model.weights``."""


def apply(values: dict[str, Any]) -> list[str]:
    """Fill in the settings that ``model.weights`` determines; ``unfit`` checks those given explicitly.

    With ``model=from_huggingface`` the shape becomes that of ``config.json``, whatever shape the experiment has, and
    the tokenizer the model's own unless ``corpus.tokenizer.kind`` is ``file`` or ``hub``.

    Args:
        values: settings by group, changed in place.

    Returns:
        Descriptions of the changes, one line each.

    Raises:
        UserError: if there is no such model, or it cannot be trained.
    """
    given = values["model"]
    weights = given.get("weights")
    if weights is None:
        if given.get("name") == OPTION:
            raise UserError(
                "model=from_huggingface needs model.weights=DIRECTORY_OR_NAME, a model of transformers to start from"
            )
        return []
    weights = str(weights)
    read = given.get("name") == OPTION
    if not read and not Path(weights).expanduser().is_dir():
        return []  # whoever needs the weights says so; a run that is done does without them
    files.require()
    directory = files.find(weights, given.get("revision"), whole=False)
    config = shapes.read_config(directory)
    lines = []
    if read:
        fields = shapes.shape_of(config, weights)
        before = {name: given.pop(name) for name in list(given) if name not in shapes.NOT_SHAPE}
        given |= {**fields, **given, "name": weights.rstrip("/").split("/")[-1]}
        gone = [f"{name}={value}" for name, value in before.items() if fields.get(name, value) != value]
        lines = [_say(given, config, weights, gone), *_tokenizer(values, directory, config, weights)]
    if values["train"].get("start_from") is None:
        lines.append(_say_optimizer(values, config))
    return lines


def unfit(
    model: ModelConfig, tokenizer: TokenizerConfig, sequence_length: int, vocab_size: int | None
) -> Iterator[str]:
    """Error lines for ``model.weights`` that do not fit the settings: shape, vocabulary, positions, tensors.

    Of a model on the hub only the small files are read, and of a directory the headers of the weights, too.

    Args:
        model: the model, with ``weights``.
        tokenizer: settings of the tokenizer.
        sequence_length: tokens that the model reads at once.
        vocab_size: size of the prepared corpus's vocabulary; None before the corpus is prepared.
    """
    weights = str(model.weights)
    try:
        directory = files.find(weights, model.revision, whole=False)
        config = shapes.read_config(directory)
        fields = shapes.shape_of(config, weights)
    except UserError as error:
        yield str(error)
        return
    if differences := shapes.differences(model, fields):
        yield f"model.weights={weights} has another shape; set {' '.join(differences)}"
    yield from _beyond_vocabulary(tokenizer, directory, config, weights, vocab_size)
    most = shapes.positions_of(config)
    if most is not None and sequence_length > most:
        yield (
            f"train.sequence_length={sequence_length} is beyond the {most} positions (n_positions) that "
            f"model.weights={weights} has embeddings for; set train.sequence_length={most} or less"
        )
    if not differences and Path(weights).expanduser().is_dir():
        from palimpsest.pretrain.huggingface import mapping  # with torch, which takes seconds

        try:
            mapping.Start(
                files.Tensors(directory), shapes.ARCHITECTURES[config.model_type].kind, model, weights
            )
        except UserError as error:
            yield str(error)


def _beyond_vocabulary(
    tokenizer: TokenizerConfig, directory: Path, config: Any, weights: str, vocab_size: int | None
) -> Iterator[str]:
    """Error line if the tokenizer has ids that the model does not know."""
    known = f"model.weights={weights} has a vocabulary of {config.vocab_size} tokens"
    if vocab_size is not None:
        if vocab_size > config.vocab_size:
            yield f"{known}, fewer than the prepared corpus's {vocab_size}; {files.own_tokenizer(directory)}"
    elif tokenizer.kind == "train":
        if tokenizer.vocab_size > config.vocab_size:
            yield (
                f"corpus.tokenizer.vocab_size={tokenizer.vocab_size}, but {known}; {files.own_tokenizer(directory)}"
            )
    elif tokenizer.path and Path(tokenizer.path).exists():
        largest = files.largest_id(Path(tokenizer.path))
        if largest is not None and largest >= config.vocab_size:
            yield (
                f"corpus.tokenizer.path={tokenizer.path} has ids up to {largest}, but {known}; use the model's own: "
                f"corpus.tokenizer.path={directory / 'tokenizer.json'}"
            )


def _say(given: dict[str, Any], config: Any, weights: str, gone: list[str]) -> str:
    kind = shapes.ARCHITECTURES[config.model_type].kind
    at = f" revision {given['revision']}" if given.get("revision") else ""
    return (
        f"model: {kind} of {weights}{at}, {given['layers']} layers of {given['hidden']}, {config.vocab_size:,} rows of "
        "vocabulary" + (f", in place of the experiment's {', '.join(gone)}" if gone else "")
    )


def _tokenizer(values: dict[str, Any], directory: Path, config: Any, weights: str) -> list[str]:
    """Set the model's own tokenizer unless one was given."""
    tokenizer = values["corpus"]["tokenizer"]
    own = directory / "tokenizer.json"
    if tokenizer.get("kind", "train") != "train":
        return []
    if not own.is_file():
        raise UserError(
            f"model.weights={weights}: there is no tokenizer.json in it; give the model's tokenizer: "
            "corpus.tokenizer.kind=file +corpus.tokenizer.path=tokenizer.json"
        )
    eod = tokenizer.get("eod") or files.end_of_text(own, config) or DEFAULT_EOD
    values["corpus"]["tokenizer"] = {"kind": "file", "path": str(own), "eod": eod}
    return [f"tokenizer: {own}, documents end with {eod}"]


def _say_optimizer(values: dict[str, Any], config: Any) -> str:
    optimizer = values["optimizer"]
    warmup = optimizer.get("warmup_steps")
    line = "optimizer: its state is new, for a model of transformers comes without; "
    line += f"the learning rate warms up over {warmup} steps" if warmup else "there is no warm-up"
    if dropout := shapes.dropouts_of(config):
        line += f". Dropout is off ({', '.join(f'{name}={value}' for name, value in dropout.items())} there)"
    return line
