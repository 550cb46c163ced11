"""Edit of a checkpoint on this rank: read its weights whole, change them, and save the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, distributed

from palimpsest.data.errors import UserError
from palimpsest.pretrain import checkpoint, chunks, parallel
from palimpsest.pretrain.config import ParallelConfig, PosttrainConfig
from palimpsest.pretrain.parallel import World
from palimpsest.pretrain.posttraining.edits import EDITS, FFN_IN, FFN_OUT, Given
from palimpsest.pretrain.posttraining.facts import Facts
from palimpsest.pretrain.posttraining.texts import Texts
from palimpsest.pretrain.posttraining.trainer import chosen_settings, identity, layer_of
from palimpsest.pretrain.settings import Settings


def apply(
    settings: Settings,
    posttrain: PosttrainConfig,
    world: World,
    *,
    parent: Path,
    step: int,
    corpus: Texts,
    facts: Texts | None,
    vocab_size: int,
    inputs: dict[str, str],
    directory: Path,
) -> None:
    """Save the parent as step 0 of the post-trained run and, unless ``posttrain.steps`` is 0, its edit as step 1.

    Every rank reads all weights, so that the result does not depend on the topology.

    Args:
        settings: of the training that made the checkpoint; its topology may be another one.
        posttrain: the edit and its settings.
        world: this process's place.
        parent: directory of the checkpoints of the run to start from.
        step: of them the one to edit.
        corpus: windows over which curvature is measured.
        facts: prompts with the answers that an edit of facts gives them; None: there are none.
        vocab_size: of the tokenizer.
        inputs: digests of what determines the result.
        directory: of the post-trained run; gets ``checkpoints/``.

    Raises:
        UserError: for settings that the edit does not have, or a topology that it cannot use.
    """
    used = EDITS[posttrain.method]
    own = chosen_settings(used.name, dict(used.settings), posttrain)
    if posttrain.steps > 1:
        raise UserError(
            f"posttrain.steps={posttrain.steps}: {used.name} is an edit, which is one step; set 1 or 0"
        )
    layer = layer_of(settings, posttrain)
    manifest = checkpoint.read(parent, step)
    checkpoint.require_whole(checkpoint.path_of(parent, step), manifest, world)
    weights = checkpoint.tensors(checkpoint.path_of(parent, step), weights_only=True)
    place = directory / "checkpoints"
    done = checkpoint.newest(place, world)

    def save(number: int, values: Mapping[str, Tensor]) -> None:
        built = chunks.build(settings, world, vocab_size, start=values)
        checkpoint.save(
            *(place, number, {"model": {k: gpt.sharded_state_dict() for k, gpt in enumerate(built)}}, world),
            config={**settings.identity(vocab_size), "posttrain": {**identity(posttrain), "edit": True}},
            inputs={**inputs, "parent": manifest.digest, "ledger": ""},
            facts={"step": number},
        )

    def earlier(back: int) -> dict[str, Tensor]:
        before = [one for one in checkpoint.finished(parent) if one < step]
        if not 0 < back <= len(before):
            raise UserError(
                f"posttrain.settings.back={back}: there are {len(before)} checkpoints before step {step} in {parent}"
            )
        return checkpoint.tensors(checkpoint.path_of(parent, before[-back]), weights_only=True)

    def curvature() -> dict[str, tuple[Tensor, Tensor]]:
        return second_moments(settings, world, weights, corpus, vocab_size)

    def edit_facts(change: Callable[[Facts], None]) -> dict[str, Tensor]:
        if facts is None:
            raise UserError(
                f"posttrain.method={used.name}: edits the answers to clozes, and the forget set has none; forget a "
                "family with clozes, such as biographies"
            )
        return _edited(settings, world, weights, facts, curvature()[FFN_OUT][0], vocab_size, change)

    if done is None:
        save(0, weights)
    if posttrain.steps and not done:
        given = Given(own, earlier, curvature, edit_facts, layer, settings.model.activation == "swiglu")
        save(1, {**weights, **used.function(weights, given)})


def _edited(
    settings: Settings,
    world: World,
    weights: Mapping[str, Tensor],
    facts: Texts,
    moments: Tensor,
    vocab_size: int,
    change: Callable[[Facts], None],
) -> dict[str, Tensor]:
    """The output matrices of the feed-forward blocks after a function has edited facts in the whole model."""
    alone = replace(settings, parallel=ParallelConfig(tensor=1, pipeline=1))
    with _regrouped(settings.parallel, alone.parallel, world) as whole:
        (gpt,) = chunks.build(alone, whole, vocab_size, start=weights)
        known = Facts(gpt, facts, moments)
        change(known)
        edited = [known.matrix(layer).detach().cpu() for layer in range(settings.model.layers)]
    return {FFN_OUT: torch.stack(edited).to(weights[FFN_OUT].dtype)}


def second_moments(
    settings: Settings, world: World, weights: Mapping[str, Tensor], corpus: Texts, vocab_size: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean over the corpus's tokens of ``a a^T`` and ``g g^T`` of the feed-forward matrices, float64, by name.

    a is a matrix's input, g the gradient of the loss by its output, with the corpus's own tokens as labels. Every rank
    has the whole model and takes a share of the windows, whatever the topology.

    Raises:
        UserError: if the model has no plain feed-forward blocks.
    """
    if FFN_IN not in weights:
        raise UserError(
            "posttrain.method: the model has no plain feed-forward blocks, which this edit changes"
        )
    alone = replace(settings, parallel=ParallelConfig(tensor=1, pipeline=1))
    with _regrouped(settings.parallel, alone.parallel, world) as whole:
        return _second_moments(alone, whole, weights, corpus, vocab_size)


@contextmanager
def _regrouped(now: ParallelConfig, other: ParallelConfig, world: World) -> Iterator[World]:
    """This process's place in another topology of the same ranks, for the time of the context."""
    parallel_state.destroy_model_parallel()
    try:
        yield replace(parallel.grouped(other, world.device), control=world.control)
    finally:
        parallel_state.destroy_model_parallel()
        parallel.grouped(now, world.device)


def _second_moments(
    settings: Settings, world: World, weights: Mapping[str, Tensor], corpus: Texts, vocab_size: int
) -> dict[str, tuple[Tensor, Tensor]]:
    (gpt,) = chunks.build(settings, world, vocab_size, start=weights)
    sums = {}
    hooks = []
    for name, attribute in ((FFN_IN, "linear_fc1"), (FFN_OUT, "linear_fc2")):
        layers, out, into = weights[name].shape
        sums[name] = [
            torch.zeros(layers, size, size, dtype=torch.float64, device=world.device) for size in (into, out)
        ]
        for number, layer in enumerate(gpt.decoder.layers):
            hooks.append(_watch(getattr(layer.mlp, attribute), *(one[number] for one in sums[name])))
    try:
        tokens = 0
        for start in range(world.data_rank, len(corpus), world.data_size):
            window = torch.from_numpy(corpus.windows[start : start + 1]).to(world.device)
            ids, labels = window[:, :-1], window[:, 1:]
            positions = torch.arange(ids.shape[1], device=world.device)[None]
            gpt(ids, positions, None, labels=labels).float().sum().backward()
            gpt.zero_grad()
            tokens += labels.numel()
    finally:
        for hook in hooks:
            hook.remove()
    count = torch.tensor(float(tokens), device=world.device, dtype=torch.float64)
    for total in (count, *(one for pair in sums.values() for one in pair)):
        distributed.all_reduce(total)
    return {name: ((a / count).cpu(), (g / count).cpu()) for name, (a, g) in sums.items()}


def _watch(linear: Any, inputs: Tensor, gradients: Tensor) -> Any:
    """Add the second moments of a linear module's inputs and gradients to these sums; the hook, to be removed."""

    def after(_module: Any, given: tuple[Tensor, ...], output: Any) -> None:
        a = given[0].detach().flatten(0, -2).double()
        inputs.add_(a.T @ a)
        (output[0] if isinstance(output, tuple) else output).register_hook(add_gradient)

    def add_gradient(gradient: Tensor) -> None:
        g = gradient.detach().flatten(0, -2).double()
        gradients.add_(g.T @ g)

    return linear.register_forward_hook(after)
