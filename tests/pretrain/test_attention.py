"""Attention inside documents: what is read alone is read the same behind another document."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.bias import CausalBias
from torch.utils._python_dispatch import TorchDispatchMode

from palimpsest.data.errors import UserError
from palimpsest.pretrain import attention as attention_module
from palimpsest.pretrain.attention import CausalAttention, document_mask, share
from palimpsest.pretrain.batches import document_starts
from tests.pretrain.test_gpu import TRAIN, pick
from tests.second_device import attend_by_document

EOD = 0


class Operators(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.append(str(function))
        return function(*arguments, **(options or {}))


def test_what_is_hidden():
    """Worked: 5 6 | 0 7 | 0; a document begins with the end-of-document token before it."""
    starts = document_starts(torch.tensor([[5, 6, 0, 7, 0]]), EOD)
    assert starts.tolist() == [0, 2, 4, 5]
    mask = document_mask(starts, 1, 5)
    assert mask.shape == (1, 1, 5, 5)
    seen = [[key for key in range(5) if mask[0, 0, query, key]] for query in range(5)]
    assert seen == [[0], [0, 1], [2], [2, 3], [4]]


def attention_of(groups):
    shape = SimpleNamespace(num_query_groups=groups, num_attention_heads=4, context_parallel_size=1)
    return CausalAttention(shape, 1, AttnMaskType.causal, "self")


@pytest.mark.parametrize("kernel", ["mask", "flash"])
@pytest.mark.parametrize("groups", [2, 4])
def test_each_document_as_if_alone(groups, kernel, monkeypatch):
    """By a mask, and by the kernel for sequences of different lengths, for which a CPU has another function."""
    if kernel == "flash":
        monkeypatch.setattr(attention_module, "takes_documents", lambda _: True)
        monkeypatch.setattr(attention_module, "varlen_attn", attend_by_document)
    torch.manual_seed(1)
    attention = attention_of(groups)
    tokens = torch.tensor([[3, 4, 5, EOD, 6, 7, EOD, 8], [1, EOD, 2, 3, 4, 5, 6, 7]])
    query = torch.randn(8, 2, 4, 6)
    key, value = torch.randn(2, 8, 2, groups, 6)
    together = attention(query, key, value, document_starts(tokens, EOD))
    for row, pieces in enumerate(([(0, 3), (3, 6), (6, 8)], [(0, 1), (1, 8)])):
        for start, end in pieces:
            part = (slice(start, end), slice(row, row + 1))
            torch.testing.assert_close(together[part], attention(query[part], key[part], value[part], None))
    assert not torch.allclose(together, attention(query, key, value, None))


def test_a_gpu_reads_documents_without_a_mask(monkeypatch):
    """PyTorch's own kernel gets the tensors that it asks for, on a pretended GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    tokens = torch.tensor([[3, 4, 5, EOD, 6, 7, EOD, 8], [1, EOD, 2, 3, 4, 5, 6, 7]])
    starts = document_starts(tokens, EOD)
    seen = Operators()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), seen:
        query = torch.empty(8, 2, 4, 16, dtype=torch.bfloat16, device="cuda")
        key = torch.empty(8, 2, 2, 16, dtype=torch.bfloat16, device="cuda")
        out = attention_of(2)(query, key, key, torch.empty(len(starts), dtype=torch.int32, device="cuda"))
    assert (out.shape, out.device.type) == ((8, 2, 64), "cuda")
    assert [name for name in seen.names if "attn" in name or "attention" in name] == [
        "torch_attn._varlen_attn.default"
    ]
    assert not any("tril" in name for name in seen.names)


def test_transformer_engine_does_not_take_it(monkeypatch):
    """It would ignore the mask: refused, and not chosen by itself."""
    from palimpsest.pretrain import parallel
    from palimpsest.pretrain.config import ModelConfig, RuntimeConfig, TrainConfig

    monkeypatch.setattr(parallel, "find_spec", lambda name: name)
    train = TrainConfig(**TRAIN, checkpoint_every=7, document_attention=True)
    model = ModelConfig(name="m", layers=2, hidden=32, heads=4, ffn=64)
    device = torch.device("cuda")
    assert pick("auto", "cuda")[0] == "te"
    assert parallel.pick_attention(RuntimeConfig(), model, train, device)[0] == "sdpa"
    with pytest.raises(UserError, match=r"runtime\.attention=te .*train\.document_attention"):
        parallel.pick_attention(RuntimeConfig(attention="te"), model, train, device)


@pytest.mark.slow
def test_a_run_reads_documents_alone(prepared):
    """The mask reaches the model: other losses from the first step on, resumed and audited like any run."""
    from tests.pretrain.test_training import records

    found = {}
    for name, wanted in (("across", "false"), ("inside", "true")):
        overrides = [f"name={name}", f"train.document_attention={wanted}"]
        prepared.ok("plan", *overrides)
        prepared.ok("train", *overrides)
        found[name] = [record["loss"] for record in records(prepared, name)]
    assert 0 < abs(found["inside"][0] - found["across"][0]) < 0.01  # random weights hardly look around
    assert found["inside"][-1] < found["inside"][0] - 0.3


@pytest.mark.parametrize("groups", [4, 2])
def test_ranks_that_divide_a_window_attend_causally_by_name(monkeypatch, groups):
    """Two ranks in one process: together the causal attention of the whole window, by a mask that flash kernels know.

    A (queries, keys) tensor would keep them away, and take a gigabyte at 128k tokens.
    """
    length, size, ranks = 16, 8, 2
    shapes = ((length, 2, 4, size), (length, 2, groups, size), (length, 2, groups, size))
    whole = [torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k, shape in enumerate(shapes)]
    parts = [[share(x.transpose(0, 1), rank, ranks).transpose(0, 1) for x in whole] for rank in range(ranks)]
    module, masks, attend = CausalAttention.__new__(CausalAttention), [], CausalAttention._attend
    torch.nn.Module.__init__(module)
    module.scale, module.grouped, module.ranks = None, groups < 4, ranks

    def note(self, *parts, **mask):
        masks.append(mask["attn_mask"])
        return attend(self, *parts, **mask)

    monkeypatch.setattr(CausalAttention, "_attend", note)
    outputs = []
    for rank in range(ranks):
        group = SimpleNamespace(rank=lambda rank=rank: rank)
        monkeypatch.setattr(
            attention_module.parallel_state, "get_context_parallel_group", lambda group=group: group
        )
        calls = iter((1, 2))
        monkeypatch.setattr(
            attention_module,
            "gather_from_sequence_parallel_region",
            lambda part, group, calls=calls: torch.cat([own[k] for k in [next(calls)] for own in parts]),
        )
        outputs.append(module(*parts[rank], None))
    monkeypatch.undo()
    assert [type(mask) for mask in masks] == [CausalBias] * 4
    module.ranks = 1
    expected = module(*whole, None)
    for rank, out in enumerate(outputs):
        assert torch.allclose(out, share(expected.transpose(0, 1), rank, ranks).transpose(0, 1), atol=1e-6)


def test_the_kernel_is_named():
    """As PyTorch chooses it, here for a CPU; asked to, it uses another."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    shape = {"length": 64, "masked": False, "dtype": torch.float32, "device": torch.device("cpu")}
    assert attention_module.kernel_name(4, 2, 16, **shape) == "flash_attention"
    assert attention_module.kernel_name(4, 4, 16, **shape | {"masked": True}) == "flash_attention"
    with sdpa_kernel(SDPBackend.MATH):
        assert attention_module.kernel_name(4, 4, 16, **shape) == "math"
