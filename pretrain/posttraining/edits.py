"""Edits of weights, registered by name: functions from the weights of a checkpoint to other weights, without training.

Weights are whole tensors under the names of the checkpoint; those of the layers are stacked, so that a matrix of all
layers is (N, out, in). Shapes: N layers, F width of the feed-forward block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.data.errors import UserError
from palimpsest.pretrain.posttraining.facts import Facts, at_once, one_by_one

Weights = Mapping[str, Tensor]
LAYERS = "decoder.layers."
FFN_IN, FFN_OUT = f"{LAYERS}mlp.linear_fc1.weight", f"{LAYERS}mlp.linear_fc2.weight"


@dataclass(frozen=True, slots=True)
class Given:
    """Inputs of an edit besides the weights."""

    settings: Mapping[str, float]
    earlier: Callable[[int], Weights]
    """Weights of the k-th last checkpoint of the run before the one that is edited."""
    curvature: Callable[[], Mapping[str, tuple[Tensor, Tensor]]]
    """Name of a matrix -> second moments of its inputs, (N, in, in), and of its outputs' gradients, (N, out, out)."""
    facts: Callable[[Callable[[Facts], None]], Mapping[str, Tensor]]
    """Gives the model and the facts to a function that edits the former, and returns the changed weights."""
    layer: int
    """``posttrain.layer``, or the middle one."""
    gated: bool
    """True if the first matrix of a feed-forward block holds a gate and a value for each neuron, (N, 2 F, H)."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A registered edit."""

    name: str
    function: Callable[[Weights, Given], dict[str, Tensor]]
    """Gives the weights that change."""
    settings: Mapping[str, float]
    """Settings with their defaults."""


EDITS: dict[str, Edit] = {}


def edit(**settings: float) -> Callable[..., Callable[[Weights, Given], dict[str, Tensor]]]:
    """Register an edit under its function's name; ``settings`` are its settings with defaults."""

    def register(
        function: Callable[[Weights, Given], dict[str, Tensor]],
    ) -> Callable[[Weights, Given], dict[str, Tensor]]:
        EDITS[function.__name__] = Edit(function.__name__, function, settings)
        return function

    return register


@edit(back=1, first=0.5, last=0.5)
def interpolate(weights: Weights, given: Given) -> dict[str, Tensor]:
    """Weights between those of an earlier checkpoint and these: ``earlier + s (weights - earlier)``.

    ``back`` counts checkpoints back from this one. s is ``first`` in the first layer and below it, ``last`` in the last
    layer and above it, and linear in between, as LiNeS scales layers (Wang et al. 2025).
    """
    earlier = given.earlier(int(given.settings["back"]))
    first, last = given.settings["first"], given.settings["last"]
    edited = {}
    for name, now in weights.items():
        if name.startswith(LAYERS):
            share = torch.linspace(first, last, len(now), dtype=torch.float64)
            share = share.view(-1, *[1] * (now.dim() - 1))
        else:
            share = torch.tensor(first if name.startswith("embedding") else last, dtype=torch.float64)
        before = earlier[name].double()
        edited[name] = (before + share * (now.double() - before)).to(now.dtype)
    return edited


@edit(bits=4)
def quantise(weights: Weights, given: Given) -> dict[str, Tensor]:
    """Round every matrix of the layers to ``bits`` bits, to nearest, with one scale a row: its largest magnitude is
    ``2^(bits-1) - 1``.
    """
    top = 2 ** (int(given.settings["bits"]) - 1) - 1
    if top < 1:
        raise UserError(f"posttrain.settings.bits={given.settings['bits']:g} must be 2 or above")
    edited = {}
    for name, matrix in _matrices(weights).items():
        scale = matrix.abs().amax(-1, keepdim=True).float().clamp(min=1e-30) / top
        edited[name] = ((matrix.float() / scale).round() * scale).to(matrix.dtype)
    return edited


@edit(share=0.3)
def prune(weights: Weights, given: Given) -> dict[str, Tensor]:
    """Set the ``share`` of each matrix with the smallest magnitudes to 0, layer by layer (Han et al. 2015)."""
    share = _share(given)
    edited = {}
    for name, matrix in _matrices(weights).items():
        flat = matrix.abs().float().flatten(1)
        dropped = round(share * flat.shape[1])
        smallest = flat.argsort(dim=1, stable=True)[:, :dropped]
        kept = torch.ones_like(flat, dtype=torch.bool).scatter(1, smallest, False)
        edited[name] = matrix * kept.view_as(matrix)
    return edited


@edit(share=0.3)
def prune_widths(weights: Weights, given: Given) -> dict[str, Tensor]:
    """Set the ``share`` of each feed-forward block's neurons with the smallest weights to 0, as if it were narrower.

    A neuron's size is the product of the norms of its weights in and out. The shapes stay, so that everything that
    reads the checkpoint does so as before.
    """
    if FFN_IN not in weights or FFN_OUT not in weights:
        raise UserError(
            "posttrain.method=prune_widths: the model has no plain feed-forward blocks, because it is a mixture of "
            "experts; choose posttrain.method=prune"
        )
    inward, outward = weights[FFN_IN], weights[FFN_OUT]
    width = outward.shape[-1]
    parts = inward.unflatten(1, (2 if given.gated else 1, width))  # (N, gate and value, F, H)
    size = parts.float().square().sum((1, 3)).sqrt() * outward.float().square().sum(1).sqrt()
    dropped = size.argsort(dim=1, stable=True)[:, : round(_share(given) * width)]
    kept = torch.ones_like(size).scatter(1, dropped, 0.0).to(inward.dtype)
    return {FFN_IN: (parts * kept[:, None, :, None]).flatten(1, 2), FFN_OUT: outward * kept[:, None, :]}


@edit(mass=0.95, first_layer=0)
def kfac(weights: Weights, given: Given) -> dict[str, Tensor]:
    """Drop directions of low curvature from the feed-forward matrices (Merullo et al. 2025).

    ``mass`` is the share of the curvature that is kept, see :func:`flat_directions_off`; layers from ``first_layer``
    on. The loss of memorised texts is held by directions in which that of all text together is flat.
    """
    mass = given.settings["mass"]
    if not 0 < mass <= 1:
        raise UserError(f"posttrain.settings.mass={mass:g} must be above 0 and at most 1")
    edited = {}
    for name, (inputs, gradients) in given.curvature().items():
        matrix = weights[name].clone()
        for layer in range(int(given.settings["first_layer"]), len(matrix)):
            matrix[layer] = flat_directions_off(matrix[layer], inputs[layer], gradients[layer], mass)
        edited[name] = matrix
    return edited


def flat_directions_off(matrix: Tensor, inputs: Tensor, gradients: Tensor, mass: float) -> Tensor:
    """``U_G ((U_G^T W U_A) * S) U_A^T``: the matrix without its components of low curvature.

    With K-FAC the curvature along the pair (i, j) of eigenvectors of G and A is ``gamma_i alpha_j``; S is 1 for the
    pairs of largest curvature that together hold ``mass`` of the sum, else 0.

    Args:
        matrix: W, (out, in).
        inputs: A = E[a a^T], second moment of the inputs, (in, in).
        gradients: G = E[g g^T], second moment of the gradients of the outputs, (out, out).
        mass: above 0, at most 1; 1 changes nothing.
    """
    alpha, u_a = torch.linalg.eigh(inputs.double())
    gamma, u_g = torch.linalg.eigh(gradients.double())
    curvature = gamma.clamp(min=0)[:, None] * alpha.clamp(min=0)[None, :]
    ordered, order = curvature.flatten().sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    # The pair that crosses the mass is kept; rounding must not drop the last pairs if all of it is wanted.
    kept_in_order = before < mass * ordered.sum() if mass < 1 else torch.ones_like(before, dtype=torch.bool)
    kept = torch.zeros_like(kept_in_order).scatter(0, order, kept_in_order).view_as(curvature)
    turned = u_g.T @ matrix.double() @ u_a
    return (u_g @ (turned * kept) @ u_a.T).to(matrix.dtype)


def _matrices(weights: Weights) -> dict[str, Tensor]:
    """The layers' matrices, without biases and norms."""
    return {name: one for name, one in weights.items() if name.startswith(LAYERS) and one.dim() > 2}


def _share(given: Given) -> float:
    share = given.settings["share"]
    if not 0 <= share < 1:
        raise UserError(f"posttrain.settings.share={share:g} must be 0 or above and below 1")
    return share


@edit()
def rome(weights: Weights, given: Given) -> dict[str, Tensor]:
    """Answer the clozes of the forget set with the refusal: rank-one edits of one layer, one after the other (Meng et
    al. 2022).
    """
    return dict(given.facts(lambda facts: one_by_one(facts, given.layer)))


@edit(layers=3, weight=1.0)
def memit(weights: Weights, given: Given) -> dict[str, Tensor]:
    """Answer the clozes of the forget set with the refusal: all together, spread over ``layers`` layers up to
    ``posttrain.layer`` (Meng et al. 2023).

    ``weight`` times the second moments of the inputs is what holds other outputs as they are.
    """
    count, weight = given.settings["layers"], given.settings["weight"]
    if count < 1 or weight <= 0:
        raise UserError(f"posttrain.settings: layers={count:g} must be at least 1, weight={weight:g} above 0")
    layers = list(range(max(0, given.layer + 1 - int(count)), given.layer + 1))
    return dict(given.facts(lambda facts: at_once(facts, layers, weight)))
