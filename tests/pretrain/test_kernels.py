"""Faster forms are the plain formulas, gradients too."""

import shutil

import pytest
import torch
import torch._dynamo
from torch.nn import functional

from palimpsest.pretrain import kernels


@pytest.fixture
def compiled(monkeypatch):
    """What is compiled on GPUs is compiled, for the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on CPUs; there is no g++")
    called = []
    make = kernels._compiled

    def count(function):
        called.append(function.__name__)
        return make(function)

    monkeypatch.setattr(kernels, "_compiles", lambda x: True)
    monkeypatch.setattr(kernels, "_compiled", count)
    with torch._dynamo.config.patch(disable=False):  # it is where megatron-core runs on a CPU
        yield called


def both(function, plain, *inputs):
    """Outputs and gradients of two functions of the same inputs."""
    found = []
    for one in (function, plain):
        given = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        out = one(*given)
        weights = torch.linspace(0.5, 1.5, out.numel()).view(out.shape)
        (out * weights).sum().backward()
        found.append([out.detach(), *(x.grad for x in given if x.is_floating_point())])
    return zip(*found, strict=True)


def test_swiglu():
    torch.manual_seed(1)

    def plain(x):
        gate, up = x.chunk(2, -1)
        return gate * torch.sigmoid(gate) * up

    for ours, theirs in both(kernels.swiglu, plain, torch.randn(3, 5, 16)):
        torch.testing.assert_close(ours, theirs)


def test_compiled_swiglu(compiled):
    test_swiglu()
    assert compiled == ["_plain_swiglu"]


def test_compiled_rotary_positions(compiled):
    """megatron-core's own function, of a part of each head, too."""
    from palimpsest.pretrain import model  # replaces it

    frequencies = torch.randn(7, 1, 1, 4)
    plain = model.rope_utils._apply_rotary_pos_emb_bshd.args[0]
    for ours, theirs in both(
        lambda x: model.rope_utils._apply_rotary_pos_emb_bshd(x, frequencies, rotary_interleaved=False),
        lambda x: plain(x, frequencies, rotary_interleaved=False),
        torch.randn(7, 2, 3, 6),
    ):
        torch.testing.assert_close(ours, theirs)
    assert compiled == ["_apply_rotary_pos_emb_bshd"]


@pytest.mark.parametrize("rows", [16, 64])
def test_loss_without_logits(monkeypatch, rows):
    """In several pieces and blocks, the last ones shorter; a masked target has no part in loss and gradients."""
    monkeypatch.setitem(kernels.LOGITS, "cpu", rows * 40)
    monkeypatch.setitem(kernels.PRODUCTS, "cpu", 2)
    torch.manual_seed(1)
    hidden, weight = torch.randn(2, 45, 8), torch.randn(40, 8)
    targets, mask = torch.randint(0, 40, (2, 45)), (torch.rand(2, 45) < 0.7).float()

    def plain(hidden, weight):
        losses = functional.cross_entropy(
            (hidden @ weight.T).flatten(0, 1), targets.flatten(), reduction="none"
        )
        return 3 * (losses * mask.flatten()).sum()

    for ours, theirs in both(
        lambda h, w: 3 * kernels.linear_cross_entropy(h, w, targets, mask)[0], plain, hidden, weight
    ):
        torch.testing.assert_close(ours, theirs)
    losses = kernels.linear_cross_entropy(hidden, weight, targets, mask)[1]
    by_hand = torch.logsumexp(hidden @ weight.T, -1) - (hidden * weight[targets]).sum(-1)
    torch.testing.assert_close(losses, by_hand)


def test_compiled_loss_without_logits(compiled, monkeypatch):
    test_loss_without_logits(monkeypatch, 16)
    assert set(compiled) == {"_losses_and_errors"}


def test_loss_without_logits_in_bf16():
    """Loss and softmax in float32: what differs is the rounding of logits and gradients to 8 bits."""
    torch.manual_seed(1)
    hidden, weight = torch.randn(64, 16), torch.randn(200, 16) / 4
    targets, mask = torch.randint(0, 200, (64,)), torch.ones(64)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        given = [x.to(dtype, copy=True).requires_grad_() for x in (hidden.bfloat16(), weight.bfloat16())]
        total, losses = kernels.linear_cross_entropy(*given, targets, mask)
        assert losses.dtype == torch.float32
        total.backward()
        found.append([losses, *(x.grad.float() for x in given)])
    for full, low in zip(*found, strict=True):
        assert (full - low).norm() < 0.01 * full.norm()


@pytest.mark.parametrize(
    ("count", "wide"), [(16_384, 50_304), (8192, 50_304), (4096, 128_256), (1000, 50_304), (3 * 2048, 50_304)]
)
def test_chunks_of_logits_on_a_gpu_are_equal_and_fill_tiles(count, wide):
    """Before, 16,384 tokens made six chunks of 2,668 and one of 376, which was compiled for itself."""
    rows = kernels._rows(count, wide, "cuda")
    assert rows * wide <= kernels.LOGITS["cuda"] or rows == 128
    assert rows % 128 == 0 or rows == count
    if count % 128 == 0:
        assert count % rows == 0


def test_where_nothing_can_be_compiled_nothing_is(monkeypatch, caplog):
    """Triton is there, and no C compiler: as in slim images. It is said once."""

    def fails(*_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    monkeypatch.setattr(torch, "compile", lambda _: fails)
    device = torch.device("cpu", 0)
    assert [kernels._compiler_works(device) for _ in range(2)] == [False, False]
    assert caplog.text.count("Failed to find C compiler") == 1
