"""Edits of weights on matrices by hand."""

import math

import pytest
import torch

from palimpsest.data.errors import UserError
from palimpsest.pretrain.posttraining.edits import EDITS, FFN_IN, FFN_OUT, Given, flat_directions_off
from palimpsest.pretrain.posttraining.facts import rank_one, spread

NAME = "decoder.layers.self_attention.linear_qkv.weight"


def edited(name, weights, earlier=None, *, gated=False, curvature=None, **settings):
    used = EDITS[name]
    given = Given(
        {**used.settings, **settings}, lambda back: earlier, lambda: curvature, lambda change: {}, 0, gated
    )
    return used.function(weights, given)


def test_interpolation_goes_from_the_first_layer_to_the_last():
    now = {NAME: torch.full((3, 2, 2), 2.0), "embedding.word_embeddings.weight": torch.full((4, 2), 2.0)}
    before = {name: torch.zeros_like(one) for name, one in now.items()}
    result = edited("interpolate", now, before, first=0.0, last=1.0)
    assert result[NAME][:, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert result["embedding.word_embeddings.weight"].eq(0).all()
    same = edited("interpolate", now, before, first=1.0, last=1.0)
    assert all(torch.equal(same[name], now[name]) for name in now)


def test_rounding_is_to_the_nearest_of_the_row_s_levels():
    """Three bits: levels are thirds of the largest magnitude of the row."""
    matrix = torch.tensor([[[3.0, 0.4, -1.4, 0.6], [0.3, 0.0, -0.1, 0.04]]])
    norm = torch.tensor([[0.123, 0.456]])
    result = edited("quantise", {NAME: matrix, "decoder.layers.input_layernorm.weight": norm}, bits=3)
    assert set(result) == {NAME}  # norms and embeddings stay
    torch.testing.assert_close(result[NAME], torch.tensor([[[3.0, 0.0, -1.0, 1.0], [0.3, 0.0, -0.1, 0.0]]]))
    zero = edited("quantise", {NAME: torch.zeros(1, 2, 2)}, bits=8)
    assert zero[NAME].eq(0).all()
    with pytest.raises(UserError, match="must be 2 or above"):
        edited("quantise", {NAME: matrix}, bits=1)


def test_pruning_takes_the_smallest_of_each_layer():
    matrix = torch.tensor([[[1.0, -2.0], [3.0, 4.0]], [[-9.0, 8.0], [7.0, -6.0]]])
    result = edited("prune", {NAME: matrix}, share=0.5)[NAME]
    assert result.tolist() == [[[0.0, 0.0], [3.0, 4.0]], [[-9.0, 8.0], [0.0, 0.0]]]
    assert torch.equal(edited("prune", {NAME: matrix}, share=0.0)[NAME], matrix)


@pytest.mark.parametrize("gated", [False, True])
def test_a_pruned_neuron_is_gone_from_both_matrices(gated):
    inward = torch.ones(1, 4 if gated else 2, 3)
    outward = torch.tensor([[[1.0, 5.0], [1.0, 5.0]]])
    result = edited("prune_widths", {FFN_IN: inward, FFN_OUT: outward}, gated=gated, share=0.5)
    alive = result[FFN_IN][0].sum(-1) > 0
    assert alive.tolist() == [False, True] * (2 if gated else 1)
    assert result[FFN_OUT].tolist() == [[[0.0, 5.0], [0.0, 5.0]]]


def test_the_curvature_edit_keeps_the_pairs_of_largest_curvature():
    """gamma = (9, 1), alpha = (4, 1): curvatures 36, 9, 4 and 1 of 50; the first two hold 0.9."""
    matrix = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    a, g = torch.diag(torch.tensor([4.0, 1.0])), torch.diag(torch.tensor([9.0, 1.0]))
    torch.testing.assert_close(
        flat_directions_off(matrix, a, g, 0.85), torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    )
    torch.testing.assert_close(
        flat_directions_off(matrix, a, g, 0.91), torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    )
    torch.testing.assert_close(flat_directions_off(matrix, a, g, 1.0), matrix)
    # The same in turned axes: A' = R A R^T, G' = Q G Q^T, W' = Q W R^T.
    c, s = math.cos(0.3), math.sin(0.3)
    r, q = torch.tensor([[c, -s], [s, c]]), torch.tensor([[s, -c], [c, s]])
    turned = flat_directions_off(q @ matrix @ r.T, r @ a @ r.T, q @ g @ q.T, 0.85)
    expected = q @ torch.tensor([[1.0, 2.0], [0.0, 0.0]]) @ r.T
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=1e-5)


def test_the_curvature_edit_begins_at_its_first_layer():
    weights = {FFN_IN: torch.ones(2, 2, 2)}
    moments = {FFN_IN: (torch.eye(2).expand(2, 2, 2), torch.diag(torch.tensor([1.0, 0.0])).expand(2, 2, 2))}
    result = edited("kfac", weights, curvature=moments, mass=0.99, first_layer=1)[FFN_IN]
    assert result[0].eq(1).all()
    assert result[1].tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_a_rank_one_edit_gives_the_key_its_value_and_changes_other_inputs_least():
    """C = diag(1, 4), k = (1, 2): C^-1 k = (1, 0.5), k^T C^-1 k = 2; from 0 to 10 adds 5 (1, 0.5)."""
    moments, key = torch.diag(torch.tensor([1.0, 4.0])), torch.tensor([1.0, 2.0])
    edited_ = rank_one(torch.tensor([[0.0, 0.0], [3.0, 1.0]]), key, torch.tensor([10.0, 5.0]), moments)
    torch.testing.assert_close(
        edited_, torch.tensor([[5.0, 2.5], [3.0, 1.0]])
    )  # the second row gave 5 already


def test_facts_at_once_are_a_ridge_regression():
    keys, residuals = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0], [8.0]])
    change = spread(keys, residuals, torch.eye(2), 1.0)
    torch.testing.assert_close(change, torch.tensor([[3 / 2, 16 / 5]]))
    torch.testing.assert_close(spread(keys, residuals, torch.eye(2), 0.0) @ keys.T, residuals.T)
