"""The lean decoder: by the kernels for CPUs and by plain PyTorch the same, whatever is read in however many steps."""

import numpy as np
import pytest
import torch

from palimpsest.analysis import generation, models
from palimpsest.analysis.decoder import Decoder, Rows, laid_out, largest, linear
from palimpsest.pretrain import kernels

transformers = pytest.importorskip("transformers")
VOCABULARY = 97
SIZES = [16, 32, 48, 64]


def llama(size, **settings):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "initializer_range": 0.1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": size}
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=256, **shape | heads | settings
    )
    return transformers.LlamaForCausalLM(config).eval()


def lean(size, *, fast=True):
    model = models.of_huggingface(llama(size))
    assert isinstance(model, Decoder)
    assert model.fast
    model.fast = fast
    return model


def equal(found, told):
    np.testing.assert_allclose(found.numpy(), told.numpy(), rtol=0, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("size", SIZES)
def test_kernels_and_pytorch_give_the_same_hidden_states(size):
    fast, plain = lean(size), lean(size, fast=False)
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (3, 2), (2, 33), (1, 131), (5, 70)]:
        ids = torch.from_numpy(rng.integers(0, VOCABULARY, shape))
        equal(fast.hidden(ids), plain.hidden(ids))
    mask = torch.ones(5, 70, 70, dtype=torch.bool).tril()
    positions = torch.arange(70).expand(5, -1)
    equal(fast.hidden(ids, positions, mask), plain.hidden(ids))


class Reading:
    """Three beginnings, and five texts that go on from some place of one, read some tokens at a time."""

    shared, lines = np.array([0, 11, 40, 1, 25]), np.array([2, 0, 1, 1, 2])
    slots = np.array([3, 0, 5, 1, 4])
    steps = ([1, 1, 1, 1, 1], [9, 2, 1, 5, 3], [1, 16, 4, 1, 7], [30, 1, 2, 8, 3])

    def __init__(self):
        rng = np.random.default_rng(0)
        self.begun = [rng.integers(0, VOCABULARY, n) for n in (11, 40, 33)]
        self.rest = [rng.integers(0, VOCABULARY, n) for n in np.sum(self.steps, 0)]

    def texts(self):
        ways = zip(self.lines, self.shared, self.rest, strict=True)
        return [np.concatenate([self.begun[line][:shared], rest]) for line, shared, rest in ways]

    def memories(self, model):
        """With the beginnings read, and with what others have left in the slots."""
        common, memory = model.memory(3, 40), model.memory(6, 50)
        none, counts = np.zeros(3, np.int64), np.array([len(one) for one in self.begun])
        ids = torch.from_numpy(np.concatenate(self.begun))
        model.extend(ids, Rows(counts, common, np.arange(3), none, common, none, none))
        for first in (0, 3):
            model.extend(ids, Rows(counts, memory, np.arange(first, first + 3), none, common, none, none))
        return common, memory

    def read(self, model):
        """Hidden states of the rest of each text."""
        common, memory = self.memories(model)
        held, found = np.zeros(5, np.int64), [[] for _ in range(5)]
        for step in self.steps:
            counts = np.array(step)
            spans = zip(self.rest, held, held + counts, strict=True)
            ids = torch.from_numpy(np.concatenate([rest[start:stop] for rest, start, stop in spans]))
            states = model.extend(
                ids, Rows(counts, memory, self.slots, held, common, self.lines, self.shared)
            )
            for row, some in enumerate(states.split(step)):
                found[row].append(some)
            held = held + counts
        return [torch.cat(parts) for parts in found]


@torch.inference_mode()
@pytest.mark.parametrize("size", SIZES)
def test_texts_that_are_read_on_are_as_if_read_at_once(size):
    reading, fast, plain = Reading(), lean(size), lean(size, fast=False)
    by_kernels, by_pytorch = reading.read(fast), reading.read(plain)
    for row, text in enumerate(reading.texts()):
        whole = fast.hidden(torch.from_numpy(text)[None])[0, reading.shared[row] :]
        equal(by_kernels[row], by_pytorch[row])
        equal(by_kernels[row], whole)


@torch.inference_mode()
@pytest.mark.parametrize("fast", [True, False])
def test_what_was_read_and_not_kept_is_forgotten(fast):
    """Wrong guesses lie behind what is held; the next tokens are written over them."""
    model = lean(32, fast=fast)
    text, wrong = torch.arange(1, 30), torch.arange(60, 70)
    memory, none = model.memory(1, 40), np.zeros(1, np.int64)

    def read(ids, held):
        return model.extend(
            ids, Rows(np.array([len(ids)]), memory, none, np.array([held]), memory, none, none)
        )

    read(torch.cat([text[:20], wrong]), 0)
    equal(read(text[20:24], 20), model.hidden(text[None])[0, 20:24])


def test_the_first_of_tied_logits_is_chosen_in_any_precision():
    logits = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (20, VOCABULARY))).float()
    told = logits.numpy().argmax(1).tolist()
    assert largest(logits).tolist() == told
    assert largest(logits.double()).tolist() == told


@pytest.mark.parametrize("size", [8, 24])
def test_heads_that_the_kernels_do_not_cover_are_continued_all_the_same(size):
    reference = llama(size)
    model = models.of_huggingface(reference)
    assert isinstance(model, Decoder)
    assert not model.fast
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, VOCABULARY, n) for n in (0, 1, 5, 30)]
    hints = [np.append(prompt, rng.integers(1, VOCABULARY, 20)) for prompt in prompts]
    found = generation.generate(model, prompts, [12] * 4, eod=0, vocab_size=VOCABULARY, hints=hints)
    for prompt, tokens in zip(prompts, found, strict=True):
        ids = torch.tensor([[0, *prompt]])
        told = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=0,
            pad_token_id=1,
        )[0, ids.shape[1] :].tolist()
        assert tokens.tolist() == (told[: told.index(0)] if 0 in told else told)


@pytest.mark.parametrize("intel", [False, True])
def test_products_are_right_whoever_multiplies(monkeypatch, intel):
    """oneDNN is asked on processors not made by Intel alone; both say what float64 says."""
    asked, onednn = [], kernels.onednn_linear
    monkeypatch.setattr(kernels, "INTEL", intel)
    monkeypatch.setattr(kernels, "onednn_linear", lambda x, weight: asked.append(1) or onednn(x, weight))
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 48, generator=generator) for rows in (37, 65))
    found = linear(x, laid_out(weight))
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=0, atol=1e-5)
    assert len(asked) == (kernels.ONEDNN and not intel)
