"""What only CPUs need is what it stands for."""

import json

import pytest
import torch
from torch.nn import functional

from palimpsest.pretrain import cpu


def plain(*given):
    """Causal attention by PyTorch: (S, B, N, H) each."""
    query, key, value = (x.permute(1, 2, 0, 3) for x in given)
    attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return attended.permute(2, 0, 1, 3).flatten(2)


def test_short_attention():
    """In float64, where it is exact."""
    torch.manual_seed(1)
    results = []
    for attention in (cpu.short_attention, plain):
        torch.manual_seed(1)
        given = [torch.randn(7, 2, 3, 4, dtype=torch.float64).requires_grad_() for _ in range(3)]
        attended = attention(*given)
        (attended * torch.linspace(0.5, 1.5, attended.numel()).view(attended.shape)).sum().backward()
        results.append([attended.detach(), *(x.grad for x in given)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("length", "dtype", "groups", "short"),
    [
        (cpu.SHORT, torch.bfloat16, 4, True),
        (cpu.SHORT + 1, torch.bfloat16, 4, False),
        (8, torch.float32, 4, False),
        (8, torch.bfloat16, 2, False),
    ],
)
def test_which_attention_is_short(length, dtype, groups, short):
    query, key = (torch.empty(length, 1, heads, 2, dtype=dtype) for heads in (4, groups))
    assert cpu.attention_is_short(query, key) == short


def test_experts_without_tokens(prepared):
    """72 experts, and 32 tokens of two experts each at a time: some experts multiply matrices without rows."""
    overrides = ["name=sparse", "train.micro_batch_size=1", "train.sequence_length=32", "train.steps=5"]
    overrides += ["insertion.doses=[0,1]", "model.layers=1", "model.experts=72", "model.ffn=16"]
    prepared.ok("plan", *overrides)
    prepared.ok("train", *overrides)
    lines = (prepared.directory("sparse") / "perturbed" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
