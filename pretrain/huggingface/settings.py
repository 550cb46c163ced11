"""Settings from a model of ``transformers``: its shape and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import DEFAULT_EOD
from palimpsest.pretrain.config import ModelConfig
from palimpsest.pretrain.huggingface import files, shapes

OPTION = "from_huggingface"
"""Option of the group ``model`` whose shape is read from ``model.weights``."""


def apply(values: dict[str, Any]) -> list[str]:
    """Fill in the settings that ``model.weights`` determines, and check those given explicitly.

    With ``model=from_huggingface`` the shape becomes that of ``config.json``, whatever shape the experiment has, and
    the tokenizer the model's own unless ``corpus.tokenizer.kind`` is ``file`` or ``hub``. With another ``model`` its
    shape must match ``config.json``, where that file is on this machine.

    Args:
        values: settings by group, changed in place.

    Returns:
        Descriptions of the changes, one line each.

    Raises:
        UserError: if there is no such model, or it cannot be trained with the settings.
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
    whole = given.get("name") != OPTION
    if whole and not Path(weights).expanduser().is_dir():
        return []  # whoever needs the weights says so; a run that is done does without them
    files.require()
    directory = files.find(weights, given.get("revision"), whole=False)
    config = shapes.read_config(directory)
    fields = shapes.shape_of(config, weights)
    if whole:
        known = {name: value for name, value in given.items() if name in ModelConfig.__slots__}
        if missing := shapes.differences(ModelConfig(**shapes.typed(known)), fields):
            raise UserError(f"model.weights={weights} has another shape; set {' '.join(missing)}")
    else:
        before = {name: given.pop(name) for name in list(given) if name not in shapes.NOT_SHAPE}
        given |= {**fields, **given, "name": weights.rstrip("/").split("/")[-1]}
        gone = [f"{name}={value}" for name, value in before.items() if fields.get(name, value) != value]
    lines = [] if whole else [_say(given, config, weights, gone)]
    lines += _tokenizer(values, directory, config, weights, whole=whole)
    _check_positions(values, config, weights)
    if values["train"].get("start_from") is None:
        lines.append(_say_optimizer(values, config))
    return lines


def _say(given: dict[str, Any], config: Any, weights: str, gone: list[str]) -> str:
    kind = shapes.ARCHITECTURES[config.model_type].kind
    at = f" revision {given['revision']}" if given.get("revision") else ""
    return (
        f"model: {kind} of {weights}{at}, {given['layers']} layers of {given['hidden']}, {config.vocab_size:,} rows of "
        "vocabulary" + (f", in place of the experiment's {', '.join(gone)}" if gone else "")
    )


def _tokenizer(
    values: dict[str, Any], directory: Path, config: Any, weights: str, *, whole: bool
) -> list[str]:
    """Set the model's own tokenizer unless one was given, and check that its ids fit the model's vocabulary."""
    tokenizer = values["corpus"]["tokenizer"]
    changes = []
    own = directory / "tokenizer.json"
    if not whole and tokenizer.get("kind", "train") == "train":
        if not own.is_file():
            raise UserError(
                f"model.weights={weights}: there is no tokenizer.json in it; give the model's tokenizer: "
                "corpus.tokenizer.kind=file +corpus.tokenizer.path=tokenizer.json"
            )
        eod = tokenizer.get("eod") or files.end_of_text(own, config) or DEFAULT_EOD
        values["corpus"]["tokenizer"] = tokenizer = {"kind": "file", "path": str(own), "eod": eod}
        changes.append(f"tokenizer: {own}, documents end with {eod}")
    path = tokenizer.get("path")
    if tokenizer.get("kind") == "file" and path and Path(path).exists():
        largest = files.largest_id(Path(path))
        if largest is not None and largest >= config.vocab_size:
            raise UserError(
                f"corpus.tokenizer.path={path} has ids up to {largest}, but model.weights={weights} knows "
                f"{config.vocab_size} tokens (vocab_size); use the model's own: corpus.tokenizer.path={own}"
            )
    return changes


def _check_positions(values: dict[str, Any], config: Any, weights: str) -> None:
    length, most = values["train"].get("sequence_length"), shapes.positions_of(config)
    if most is not None and isinstance(length, int) and length > most:
        raise UserError(
            f"train.sequence_length={length} is beyond the {most} positions (n_positions) that model.weights={weights} "
            f"has embeddings for; set train.sequence_length={most} or less"
        )


def _say_optimizer(values: dict[str, Any], config: Any) -> str:
    optimizer = values["optimizer"]
    warmup = optimizer.get("warmup_steps")
    line = "optimizer: its state is new, for a model of transformers comes without; "
    line += f"the learning rate warms up over {warmup} steps" if warmup else "there is no warm-up"
    if dropout := shapes.dropouts_of(config):
        line += f". Dropout is off ({', '.join(f'{name}={value}' for name, value in dropout.items())} there)"
    return line
