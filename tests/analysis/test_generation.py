"""Continuations: as transformers generates them, and as teacher forcing says they are."""

import numpy as np
import polars as pl
import pytest
import torch

from analysis import generation, models, scoring
from analysis.metrics.extraction import extractable, sampling_logprobs
from analysis.scoring import Sampling

transformers = pytest.importorskip("transformers")
EOD, VOCABULARY = 0, 300
MARGIN = 1e-3
PREFIXES = (25, 50, 75, 100)


def nano(**settings):
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **shape | settings)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def memorised():
    """A nano model that has learnt half of some passages, some of them in part, and the passages."""
    rng = np.random.default_rng(0)
    passages = rng.integers(1, VOCABULARY, (24, 130))
    learnt = passages[:12].copy()
    learnt[6:, 90:] = rng.integers(1, VOCABULARY, (6, 40))  # these are remembered until token 90
    model = nano()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    ids = torch.from_numpy(np.insert(learnt, 0, EOD, axis=1))
    for _ in range(60):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), passages


def by_transformers(model, prompt, length):
    """Greedy, one text at a time."""
    ids = torch.tensor([[EOD, *prompt]])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=EOD,
        pad_token_id=1,
    )[0, len(prompt) + 1 :].tolist()
    return found[: found.index(EOD)] if EOD in found else found


def test_teacher_forcing_says_what_greedy_decoding_does(memorised):
    """Item by item at every prefix; they may differ only where two tokens are as good as equally likely."""
    reference, passages = memorised
    model = models.of_huggingface(reference)
    numbers = scoring.score_tokens(model, list(passages), eod=EOD, vocab_size=VOCABULARY)
    rank, margin = (numbers[name].reshape(passages.shape) for name in ("rank", "margin"))
    extracted, differences = 0, []
    for prefix in PREFIXES:
        length = passages.shape[1] - prefix
        made = generation.generate(
            model, list(passages[:, :prefix]), [length] * len(passages), eod=EOD, vocab_size=VOCABULARY
        )
        for k, passage in enumerate(passages):
            forced = extractable(rank[k] == 0, prefix, length)
            extracted += forced
            given = np.append(made[k], [EOD] * (length - len(made[k])))
            first = [
                np.append(np.flatnonzero(x), length)[0] for x in (rank[k, prefix:], given != passage[prefix:])
            ]
            assert forced == (first[0] == length)
            if first[0] != first[1]:  # where the one leaves the passage and the other does not
                place = prefix + min(first)
                differences.append((k, prefix, int(place), float(margin[k, place])))
    print("item, prefix, token, margin of each difference:", differences or "none")
    assert 12 <= extracted <= 4 * 12  # some are, some are not
    assert all(abs(near) < MARGIN for *_, near in differences), differences


def test_continuations_are_those_of_transformers(memorised):
    reference, passages = memorised
    model = models.of_huggingface(reference)
    prompts = [passages[k][: 5 + 3 * (k % 4)] for k in range(0, 24, 3)]
    lengths = [3 + 5 * (k % 5) for k in range(len(prompts))]
    found = generation.generate(model, prompts, lengths, eod=EOD, vocab_size=VOCABULARY)
    for prompt, length, tokens in zip(prompts, lengths, found, strict=True):
        assert tokens.tolist() == by_transformers(reference, prompt, length)


def test_what_scoring_has_said_is_not_generated_again(memorised, monkeypatch):
    reference, passages = memorised
    model = models.of_huggingface(reference)
    numbers = scoring.score_tokens(model, list(passages), eod=EOD, vocab_size=VOCABULARY)
    argmax = numbers["argmax"].reshape(passages.shape)
    asked = []
    generate = generation.generate

    def counting(model, prompts, lengths, **rest):
        asked.extend(lengths)
        return generate(model, prompts, lengths, **rest)

    monkeypatch.setattr(generation, "generate", counting)
    found = generation.continue_greedily(
        model, list(passages), list(argmax), PREFIXES, longest=40, eod=EOD, vocab_size=VOCABULARY
    )
    for prefix in PREFIXES:
        length = min(40, passages.shape[1] - prefix)
        plain = generate(
            model, list(passages[:, :prefix]), [length] * len(passages), eod=EOD, vocab_size=VOCABULARY
        )
        for k in range(len(passages)):
            assert found[prefix][k].tolist() == plain[k].tolist(), (prefix, k)
    assert sum(asked) < 0.8 * 24 * (40 + 40 + 40 + 30)


def test_samples_have_the_models_distribution():
    reference = nano(hidden_size=32, intermediate_size=32, num_hidden_layers=1, initializer_range=0.5)
    model = models.of_huggingface(reference)
    prompt = np.array([5, 6, 7])
    draws = 4000
    tokens = generation.generate(
        model,
        [prompt] * draws,
        [1] * draws,
        eod=VOCABULARY - 1,
        vocab_size=VOCABULARY,
        sampling=Sampling(top_k=5),
    )
    with torch.no_grad():
        logits = reference(input_ids=torch.tensor([[VOCABULARY - 1, 5, 6, 7]])).logits[0, -1].double()
    best = logits.topk(5)
    wanted = dict(zip(best.indices.tolist(), torch.softmax(best.values, 0).tolist(), strict=True))
    drawn = [int(found[0]) if len(found) else VOCABULARY - 1 for found in tokens]
    assert set(drawn) <= set(wanted)
    for token, p in wanted.items():
        assert abs(drawn.count(token) / draws - p) < 5 * np.sqrt(p * (1 - p) / draws)


def test_samples_repeat_with_their_seed_alone():
    model = models.of_huggingface(nano(num_hidden_layers=1))
    prompts = [np.array([k, k + 1]) for k in range(1, 9)]

    def draw(seed):
        found = generation.generate(
            model,
            prompts,
            [12] * 8,
            eod=EOD,
            vocab_size=VOCABULARY,
            sampling=Sampling(seed=seed, temperature=2.0),
        )
        return [tokens.tolist() for tokens in found]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_an_end_of_document_ends_the_continuation(memorised):
    reference, passages = memorised
    model = models.of_huggingface(reference)
    text = passages[0]
    full = generation.generate(model, [text[:25]], [20], eod=EOD, vocab_size=VOCABULARY)[0].tolist()
    stop = full[10]
    # Ids but the eod's mean the same; prompts start with another token then, so compare with transformers' own.
    ids = torch.tensor([[stop, *text[:25]]])
    told = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=1,
    )[0, 26:].tolist()
    found = generation.generate(model, [text[:25]], [20], eod=stop, vocab_size=VOCABULARY)[0].tolist()
    assert found == (told[: told.index(stop)] if stop in told else told)


def test_prompts_of_any_length_are_continued_as_one_by_one(memorised):
    """Batches of unlike prompts, empty ones, texts shared by several prompts, guesses from hints that are wrong."""
    reference, passages = memorised
    model = models.of_huggingface(reference)
    rng = np.random.default_rng(4)
    prompts = [passages[k % 24][:n] for k, n in enumerate([0, 1, 2, 7, 40, 41, 90, 100, 12, 12, 3])]
    lengths = rng.integers(1, 60, len(prompts)).tolist()
    right = [passages[k % 24] for k in range(len(prompts))]
    wrong = [rng.integers(1, VOCABULARY, 150) for _ in prompts]
    ways = [
        generation.generate(model, prompts, lengths, eod=EOD, vocab_size=VOCABULARY, hints=hints)
        for hints in ((), right, wrong)
    ]
    for k, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        told = by_transformers(reference, prompt.tolist(), length)
        assert [way[k].tolist() for way in ways] == [told] * 3, k


def test_what_repeats_itself_takes_few_steps(memorised, monkeypatch):
    reference, passages = memorised
    model = models.of_huggingface(reference)
    steps = []
    extend = type(model).extend

    def counting(self, ids, caches):
        steps.append(ids.shape[1])
        return extend(self, ids, caches)

    monkeypatch.setattr(type(model), "extend", counting)
    learnt = [passages[k] for k in range(6)]
    made = generation.generate(
        model, [text[:26] for text in learnt], [100] * 6, eod=EOD, vocab_size=VOCABULARY, hints=learnt
    )
    assert [tokens.tolist() for tokens in made] == [text[26:126].tolist() for text in learnt]
    assert len(steps) < 30


@pytest.mark.parametrize("hinted", [False, True])
def test_cohorts_change_nothing(memorised, monkeypatch, hinted):
    """Small ones that end one by one, begin in the middle, and take each other's memory."""
    reference, passages = memorised
    model = models.of_huggingface(reference)
    several = [*range(24), *range(24)]
    prompts = [passages[k][: 3 + 7 * (n % 5)] for n, k in enumerate(several)]
    lengths = [2 + 9 * (n % 7) for n in range(48)]
    hints = [passages[k] for k in several] if hinted else []
    monkeypatch.setitem(generation.COHORT, "cpu", 2)
    monkeypatch.setitem(generation.TOGETHER, "cpu", 2)
    monkeypatch.setattr(generation, "SHARE", 12)
    made = []
    cache = type(model).cache
    monkeypatch.setattr(type(model), "cache", lambda self, *sizes: made.append(sizes) or cache(self, *sizes))
    found = generation.generate(model, prompts, lengths, eod=EOD, vocab_size=VOCABULARY, hints=hints)
    assert len(made) < 48 / 2  # others began in memory that was there
    for prompt, length, tokens in zip(prompts, lengths, found, strict=True):
        assert tokens.tolist() == by_transformers(reference, prompt, length)


def test_what_one_text_went_on_as_is_guessed_in_another():
    phrases = generation._Phrases()
    first = np.arange(10, 20)
    assert phrases.guess(first[None, :5], 3).tolist() == [[14, 14, 14]]  # nothing is known
    phrases.read(first)
    assert phrases.guess(first[None, :5], 7).tolist() == [[15, 16, 17, 18, 19, 19, 19]]
    other = np.array([[1, 2, 3, 13, 14], [1, 2, 13, 14, 3]])
    assert phrases.guess(other, 2).tolist() == [[15, 16], [3, 3]]
    phrases.learn(other[:1], np.array([7]))  # the longest context counts, and of one length the last word
    assert phrases.guess(np.array([[1, 2, 3, 13, 14], [10, 11, 12, 13, 14]]), 1).tolist() == [[7], [15]]


SCHEMES = [
    {"temperature": 0.7},
    {"top_k": 3},
    {"top_p": 0.8},
    {"temperature": 2.0, "top_k": 40, "top_p": 0.9},
]


@pytest.mark.parametrize("sampling", [Sampling(**scheme) for scheme in SCHEMES])
def test_what_sampling_would_draw_is_scored_in_one_pass(memorised, sampling):
    reference, passages = memorised
    model = models.of_huggingface(reference)
    probes = pl.DataFrame(
        {"probe_id": [f"p{k}" for k in range(24)], "tokens": passages.tolist()},
        schema_overrides={"tokens": pl.List(pl.Int32)},
    )
    found = scoring.score_sampled(model, probes, sampling, eod=EOD, vocab_size=VOCABULARY)
    with torch.no_grad():
        logits = reference(
            input_ids=torch.from_numpy(np.insert(passages, 0, EOD, axis=1)[:, :-1])
        ).logits.numpy()
    told = sampling_logprobs(
        logits, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
    )
    told = np.take_along_axis(told, passages[..., None], -1)[..., 0]
    given = np.array(found["sampled"].to_list())
    both = np.isfinite(given) & np.isfinite(told)
    assert np.mean(np.isfinite(given) == np.isfinite(told)) > 0.999  # the edge itself may fall to either side
    np.testing.assert_allclose(given[both], told[both], atol=1e-3)


def test_sampled_targets_are_those_of_the_formula_ties_included():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (200, 9)).astype(np.float32)
    targets = rng.integers(0, 9, 200)
    for k, p, t in [(None, None, 0.5), (3, None, 1.0), (None, 0.6, 1.0), (4, 0.5, 2.0), (None, 1e-9, 1.0)]:
        found = scoring.sampled_logprob(
            torch.from_numpy(logits), torch.from_numpy(targets), Sampling(temperature=t, top_k=k, top_p=p)
        )
        told = sampling_logprobs(logits, temperature=t, top_k=k, top_p=p)[np.arange(200), targets]
        np.testing.assert_allclose(found.numpy(), told, atol=1e-6)
