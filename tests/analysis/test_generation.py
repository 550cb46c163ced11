"""Continuations: as transformers generates them, and as teacher forcing says they are."""

import numpy as np
import polars as pl
import pytest
import torch

from palimpsest.analysis import generation, models, scoring
from palimpsest.analysis.metrics.extraction import extractable, sampling_logprobs
from palimpsest.analysis.scoring import Sampling

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


def read_by(model, monkeypatch):
    """Tokens of each step, filled when the model reads on."""
    steps, extend = [], type(model).extend
    monkeypatch.setattr(
        type(model), "extend", lambda self, ids, rows: steps.append(len(ids)) or extend(self, ids, rows)
    )
    return steps


def greedily(model, texts, prefixes=PREFIXES, eod=EOD):
    return generation.continue_greedily(model, texts, prefixes, longest=40, eod=eod, vocab_size=VOCABULARY)


def test_what_is_scored_while_continuing_is_what_scoring_says(memorised):
    reference, passages = memorised
    model = models.of_huggingface(reference)
    texts = [text[: 130 - 5 * k] for k, text in enumerate(passages)]
    told = scoring.score_tokens(model, texts, eod=EOD, vocab_size=VOCABULARY)
    found, _ = greedily(model, texts)
    assert set(found) == set(told)
    for name, values in told.items():
        assert found[name].dtype == values.dtype
        tolerance = 0 if name in ("rank", "argmax") else 1e-4
        np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance, err_msg=name)


def test_continuations_after_several_prefixes_are_those_of_each(memorised):
    """Texts that end before a prefix, after it, and beyond what is asked for; the prefix may be empty."""
    reference, passages = memorised
    model = models.of_huggingface(reference)
    texts = [text[: 130 - 23 * (k % 5)] for k, text in enumerate(passages)]
    prefixes = (75, 100, 60, 0, 50, 25)
    _, found = greedily(model, texts, prefixes)
    assert list(found) == list(prefixes)
    for prefix in prefixes:
        longer = [k for k, text in enumerate(texts) if len(text) > prefix]
        plain = generation.generate(
            model,
            [texts[k][:prefix] for k in longer],
            [min(40, len(texts[k]) - prefix) for k in longer],
            eod=EOD,
            vocab_size=VOCABULARY,
        )
        told = {k: tokens.tolist() for k, tokens in zip(longer, plain, strict=True)}
        assert [tokens.tolist() for tokens in found[prefix]] == [told.get(k, []) for k in range(len(texts))]


def test_what_scoring_has_said_is_not_generated_again(memorised, monkeypatch):
    reference, passages = memorised
    model = models.of_huggingface(reference)
    rank = scoring.score_tokens(model, list(passages), eod=EOD, vocab_size=VOCABULARY)["rank"]
    known = (rank.reshape(passages.shape)[:, PREFIXES[0] :] == 0).all(1)
    assert known.sum() >= 3
    steps = read_by(model, monkeypatch)
    _, found = greedily(model, list(passages[known]))
    assert sum(steps) == known.sum() * 130  # each text once, and nothing else
    for prefix in PREFIXES:
        assert [new.tolist() for new in found[prefix]] == passages[known, prefix : prefix + 40].tolist()
    steps.clear()
    greedily(model, list(passages))
    assert sum(steps) < 24 * 130 + 0.8 * 24 * (40 + 40 + 40 + 30)


def test_continuations_after_prefixes_end_with_the_document(memorised):
    reference, passages = memorised
    model = models.of_huggingface(reference)
    tokens, counts = np.unique(
        np.concatenate(greedily(model, list(passages[12:]))[1][25]), return_counts=True
    )
    ended = 0
    for eod in tokens[counts.argsort()[-4:]]:  # the model says these in many places
        texts = [text for text in passages if eod not in text]
        _, found = greedily(model, texts, (25, 50), eod)
        for prefix in (25, 50):
            prompts = [text[:prefix] for text in texts]
            told = generation.generate(model, prompts, [40] * len(texts), eod=eod, vocab_size=VOCABULARY)
            assert [new.tolist() for new in found[prefix]] == [new.tolist() for new in told]
            ended += sum(len(new) < 40 for new in told)
    assert ended


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


@pytest.mark.parametrize("together", [1, 3, 32])
def test_samples_of_a_prompt_do_not_depend_on_the_others(monkeypatch, together):
    model = models.of_huggingface(nano(num_hidden_layers=1))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, VOCABULARY, n) for n in (3, 0, 9, 4, 30, 1)]
    others = [rng.integers(1, VOCABULARY, n) for n in (1, 7, 2, 60, 3, 3, 8, 8)]
    lengths = [12, 5, 30, 1, 7, 12]

    def draw(prompts, lengths):
        sampling = Sampling(seed=3, temperature=2.0, top_p=0.95)
        found = generation.generate(
            model, prompts, lengths, eod=EOD, vocab_size=VOCABULARY, sampling=sampling
        )
        return [tokens.tolist() for tokens in found]

    told = draw(prompts, lengths)
    monkeypatch.setitem(generation.TOGETHER, "cpu", together)
    monkeypatch.setattr(generation, "SHARE", (4, 4))
    assert draw(prompts, lengths) == told
    for k in range(len(prompts)):
        assert (
            draw([*others[:k], prompts[k], *others[k + 1 :]], [9] * k + [lengths[k]] + [20] * (7 - k))[k]
            == told[k]
        )


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


def test_an_end_of_document_that_was_guessed_ends_the_continuation(memorised):
    """What follows it in the hint is right as well, but is not asked for."""
    reference, passages = memorised
    model = models.of_huggingface(reference)
    learnt = list(passages[:6])
    prompts, early = [text[:26] for text in learnt], 0
    for eod in [int(text[60]) for text in learnt]:
        plain, guessed = (
            generation.generate(model, prompts, [60] * 6, eod=eod, vocab_size=VOCABULARY, hints=hints)
            for hints in ((), learnt)
        )
        assert [new.tolist() for new in guessed] == [new.tolist() for new in plain]
        early += sum(len(new) < 60 for new in guessed)
    assert early >= 3


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
    learnt = list(passages[:6])
    steps = read_by(model, monkeypatch)
    made = generation.generate(
        model, [text[:26] for text in learnt], [100] * 6, eod=EOD, vocab_size=VOCABULARY, hints=learnt
    )
    assert [tokens.tolist() for tokens in made] == [text[26:126].tolist() for text in learnt]
    assert len(steps) < 30


@pytest.fixture(scope="module")
def several(memorised):
    """Prompts, how long to go on, the passages they are of, and what transformers says: two of each of 12 passages."""
    reference, passages = memorised
    texts = list(passages[6:18])
    texts += texts
    prompts = [text[: 3 + 7 * (n % 5)] for n, text in enumerate(texts)]
    lengths = [2 + 9 * (n % 7) for n in range(24)]
    told = [by_transformers(reference, *asked) for asked in zip(prompts, lengths, strict=True)]
    return prompts, lengths, texts, told


@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize(("together", "share"), [(2, (6, 6)), (5, (1, 7)), (32, (64, 256))])
def test_what_is_read_together_changes_nothing(memorised, several, monkeypatch, together, share, hinted):
    """Prompts that end one by one, and whose slots are taken by others, of one text or of another."""
    model = models.of_huggingface(memorised[0])
    prompts, lengths, texts, told = several
    monkeypatch.setitem(generation.TOGETHER, "cpu", together)
    monkeypatch.setattr(generation, "SHARE", share)
    made, memory = [], type(model).memory
    monkeypatch.setattr(
        type(model), "memory", lambda self, rows, places: made.append(rows) or memory(self, rows, places)
    )
    found = generation.generate(
        model, prompts, lengths, eod=EOD, vocab_size=VOCABULARY, hints=texts if hinted else ()
    )
    count = 12 if hinted else 24  # texts: a hint's prompts are one
    size = min(max(-(-count // 8), share[0]), share[1])
    assert len(made) == 2 * -(-count // size)  # what is shared and what is not; slots are taken again
    assert max(made) <= 2 * together
    assert [tokens.tolist() for tokens in found] == told


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


def test_a_hint_beyond_the_vocabulary_is_no_guess(memorised):
    reference, passages = memorised
    model = models.of_huggingface(reference)
    prompts = [passages[k][:20] for k in range(6)]
    hints = [np.concatenate([passages[k][:40], [VOCABULARY, VOCABULARY + 9] * 20]) for k in range(6)]
    plain, hinted = (
        generation.generate(model, prompts, [40] * 6, eod=EOD, vocab_size=VOCABULARY, hints=given)
        for given in ((), hints)
    )
    assert [new.tolist() for new in hinted] == [new.tolist() for new in plain]


def test_a_text_that_goes_on_after_its_document_does_not_in_the_continuation(memorised):
    reference, passages = memorised
    model = models.of_huggingface(reference)
    eod = int(passages[0][60])  # learnt: the model says it there
    _, found = generation.continue_greedily(
        model, [passages[0]], [30], longest=60, eod=eod, vocab_size=VOCABULARY
    )
    plain = generation.generate(model, [passages[0][:30]], [60], eod=eod, vocab_size=VOCABULARY)
    assert found[30][0].tolist() == plain[0].tolist()
    assert len(plain[0]) <= 30


def test_no_texts_and_no_prefixes_are_nothing_to_continue(memorised):
    reference, passages = memorised
    model = models.of_huggingface(reference)
    numbers, found = generation.continue_greedily(model, [], [5], longest=9, eod=EOD, vocab_size=VOCABULARY)
    assert found == {5: []}
    assert all(len(values) == 0 for values in numbers.values())
    numbers, found = generation.continue_greedily(
        model, [passages[0]], [], longest=9, eod=EOD, vocab_size=VOCABULARY
    )
    assert found == {}
    assert len(numbers["rank"]) == len(passages[0])
