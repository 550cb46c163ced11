"""Export of checkpoints to models of ``transformers``, from the tensors on disk, without process groups or a GPU."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.pretrain import checkpoint
from palimpsest.pretrain.config import ModelConfig
from palimpsest.pretrain.huggingface import shapes
from palimpsest.pretrain.huggingface.files import require
from palimpsest.pretrain.huggingface.mapping import EMBEDDING, to_transformers


def load(directory: Path, step: int, *, eod: int) -> Any:
    """The model of a checkpoint, in memory and in evaluation mode, on the CPU.

    Args:
        directory: directory of the run's checkpoints, whose manifests have the shape.
        step: finished steps.
        eod: id of the end-of-document token.

    Returns:
        A model of ``transformers`` (``LlamaForCausalLM``, or the class that ``architecture`` names) with the
        checkpoint's precision and the tokenizer's vocabulary.

    Raises:
        UserError: without ``transformers``, or if the checkpoint is missing or of another version.
    """
    require()
    from transformers import GenerationConfig, logging

    logging.disable_progress_bar()
    path, manifest = checkpoint.path_of(directory, step), checkpoint.read(directory, step)
    checkpoint.require_whole(path, manifest)
    config = manifest.config
    model = _shape(config["model"], path)
    weights = checkpoint.tensors(path, weights_only=True)
    wanted = shapes.settings(
        model,
        config["vocab_size"],
        sequence_length=config["train"]["sequence_length"],
        eod=eod,
        dtype=weights[EMBEDDING].dtype,
    )
    # Not by load_state_dict: files have other names than models (experts by one, the output layer of GPT-NeoX).
    gpt = (
        shapes.architecture(model)
        .classes[1]
        .from_pretrained(
            None,
            config=wanted,
            state_dict=to_transformers(weights, model, model.rows(config["vocab_size"])),
            dtype=wanted.dtype,
        )
    )
    _compute_frequencies(gpt, wanted)
    gpt.generation_config = GenerationConfig(bos_token_id=eod, eos_token_id=eod, pad_token_id=eod)
    return gpt.eval()


def _shape(given: Mapping[str, Any], path: Path) -> ModelConfig:
    """Model shape in a checkpoint's manifest.

    Raises:
        UserError: if another version wrote the checkpoint, with settings unknown to this version.
    """
    known = {field.name for field in fields(ModelConfig)}
    if strangers := sorted(set(given) - known):
        raise UserError(
            f"{path} was written by another version, whose model.{strangers[0]} is unknown here; export it with that "
            "version"
        )
    return ModelConfig(**{**shapes.typed(given), "name": path.name})


def _compute_frequencies(gpt: Any, wanted: Any) -> None:
    """Recreate the modules that compute rotary frequencies.

    ``from_pretrained`` creates them on the meta device, which :mod:`pretrain.cpu` cannot handle.
    """
    for module in list(gpt.modules()):
        if "rotary_emb" in module._modules:
            module.rotary_emb = type(module.rotary_emb)(wanted)


def fast_tokenizer(tokenizer: Tokenizer, *, sequence_length: int) -> Any:
    """Tokenizer of ``transformers`` whose beginning-of-text, end-of-text and padding token is the end-of-document
    token.

    It adds no token to texts, because training text has an end-of-document token only after each document.
    """
    require()
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    text = tokenizer.backend.id_to_token(tokenizer.eod)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.backend.to_str()),
        bos_token=text,
        eos_token=text,
        pad_token=text,
        model_max_length=sequence_length,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # a text that holds their names is text, as in training
    )


def write(gpt: Any, tokenizer: Tokenizer, directory: Path) -> None:
    """Write a model of ``load`` and its tokenizer to a directory that ``from_pretrained`` reads."""
    gpt.save_pretrained(directory)
    fast_tokenizer(tokenizer, sequence_length=gpt.config.max_position_embeddings).save_pretrained(directory)


def repository_name(experiment: str, run: str) -> str:
    """``experiment/run`` as a name that the hub's client allows."""
    allowed = re.sub(r"([-.])[-.]+", r"\1", experiment)[: 96 - len(run) - 1].strip("-.")
    return f"{allowed or 'experiment'}/{run}"


def write_revisions(place: Path, name: str, revisions: Mapping[str, tuple[str, str]]) -> None:
    """Make directories of models the revisions of one repository, in the layout of the hub client's cache.

    With ``HF_HUB_OFFLINE=1``, ``from_pretrained(name, revision=..., cache_dir=place)`` reads it without a network.
    Weights are not copied.

    Args:
        place: directory that contains the models' directories.
        name: name of the repository, with or without an owner.
        revisions: revision -> directory in ``place``, and its digest. The last one is also ``main``.
    """
    target = place / f"models--{name.replace('/', '--')}"
    draft = artifact.draft_directory(target)
    try:
        for part in ("refs", "snapshots"):
            (draft / part).mkdir()
        for revision, (directory, digest) in revisions.items():
            commit = blake2b(digest.encode(), digest_size=20).hexdigest()  # as long as one of git
            for reference in (revision, "main"):
                (draft / "refs" / reference).write_text(commit, encoding="utf-8")
            (draft / "snapshots" / commit).symlink_to(Path("..", "..", directory), target_is_directory=True)
        artifact.put_in_place(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
