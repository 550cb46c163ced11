"""Scoring against what others do with the same model on the same machine.

    python benchmarks/scoring.py [--model DIRECTORY] [--texts FILE] [--out results/scoring_DATE.md]

Three comparisons, on a ``tiny`` model (an exported checkpoint with ``--model``, otherwise one with random weights):

1. Hubble's copyright tasks on 2,000 passages of 200 tokens: log-likelihood, exact match and ROUGE-L of the next 100
   tokens after 25, 50, 75 and 100. As its tasks obtain them: a log-likelihood pass and four greedy generations, batch
   32, up to 500 (or 100) new tokens, with ``transformers``. Here: one pass, and generation of what the pass has not
   said. The generations of ``transformers`` are timed on ``--generated`` passages and scaled up.
2. Six numbers a token on 2,000 items of 20 to 400 tokens, against a padded ``transformers`` loop in file order at its
   best batch size, which takes log-softmax and gather alone; and against ``lm_eval`` where it is installed.
   Passages are consecutive tokens of the text ``--texts``, by the tokenizer beside the model; without it random ids.
3. The largest difference to float32, one text at a time.

Arms take turns, ``--repeats`` times; medians are told. Loading and importing are not timed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import torch
import transformers

from palimpsest.analysis import generation, models, scoring, store
from palimpsest.analysis.metrics.extraction import extractable
from palimpsest.analysis.metrics.similarity import rouge_l

EOD, PREFIXES, NEXT = 0, (25, 50, 75, 100), 100
Texts = list[np.ndarray]


def tiny(path: Path | None) -> transformers.PreTrainedModel:
    if path is not None:
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=224,
        intermediate_size=672,
        num_hidden_layers=6,
        num_attention_heads=7,
        num_key_value_heads=7,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        bos_token_id=EOD,
        eos_token_id=EOD,
    )
    return transformers.LlamaForCausalLM(config).eval()


@torch.inference_mode()
def padded(model: transformers.PreTrainedModel, texts: Texts, size: int) -> list[np.ndarray]:
    """Token log-probabilities as a plain loop takes them: batches in file order, padded to the longest."""
    found = []
    for start in range(0, len(texts), size):
        batch = texts[start : start + size]
        longest = max(map(len, batch))
        ids = torch.full((len(batch), longest + 1), EOD)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, text in enumerate(batch):
            ids[row, 1 : len(text) + 1] = torch.from_numpy(text)
            mask[row, : len(text)] = 1
        logits = model(input_ids=ids[:, :-1], attention_mask=mask, use_cache=False).logits
        logprob = torch.log_softmax(logits.float(), -1).gather(2, ids[:, 1:, None])[..., 0]
        found += [logprob[row, : len(text)].numpy() for row, text in enumerate(batch)]
    return found


@torch.inference_mode()
def generated(model: transformers.PreTrainedModel, texts: Texts, new: int) -> None:
    """Four greedy generations, batch 32, as Hubble's tasks ask for them."""
    for prefix in PREFIXES:
        for start in range(0, len(texts), 32):
            ids = torch.tensor(
                np.stack([np.append(EOD, text[:prefix]) for text in texts[start : start + 32]])
            )
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=EOD,
                pad_token_id=EOD,
            )


def copyright_metrics(
    model: models.Model, texts: Texts, vocabulary: int, seconds: dict[str, float]
) -> pl.DataFrame:
    """Hubble's copyright metrics, all of them; ``seconds`` gets the time of each part."""
    began = time.perf_counter()
    numbers, made = generation.continue_greedily(
        model, texts, PREFIXES, longest=NEXT, eod=EOD, vocab_size=vocabulary
    )
    continued = time.perf_counter()
    ends = np.cumsum([len(text) for text in texts])[:-1]
    split = {name: np.split(numbers[name], ends) for name in ("logprob", "rank")}
    rows = [
        {
            "text": k,
            "prefix": prefix,
            "loglik": float(split["logprob"][k].sum(dtype=np.float64)),
            "exact": extractable(split["rank"][k] == 0, prefix, NEXT),
            "rouge_l": rouge_l(made[prefix][k].tolist(), text[prefix : prefix + NEXT].tolist()).f1,
        }
        for prefix in PREFIXES
        for k, text in enumerate(texts)
    ]
    seconds |= {
        "scores and continuations": continued - began,
        "metrics": time.perf_counter() - continued,
    }
    return pl.DataFrame(rows)


def lm_eval_pass(model: transformers.PreTrainedModel, texts: Texts) -> Callable[[], None] | None:
    """``lm_eval``'s log-likelihoods of the same token ids, or None where it is not installed."""
    if find_spec("lm_eval") is None:
        return None
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = WordLevel({str(k): k for k in range(model.config.vocab_size)}, unk_token="0")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), eos_token="0", pad_token="0", bos_token="0"
    )
    requests = [((str(k), ""), [EOD], text.tolist()) for k, text in enumerate(texts)]
    arms = {
        size: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, device="cpu", max_length=1024)
        for size in (1, 8, 32)
    }
    best = min(arms, key=lambda size: timed(lambda: run(arms[size], requests[:150])))

    def run_all() -> None:
        run(arms[best], requests)

    run_all.__doc__ = f"batch {best}"
    return run_all


def run(harness, requests: Sequence) -> None:
    harness._loglikelihood_tokens(requests, disable_tqdm=True)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def told(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.1f} ({min(values):,.1f}-{max(values):,.1f})"


def mixed_lengths(reference, model: models.Model, vocabulary: int, given) -> list[str]:
    rng = np.random.default_rng(1)
    texts = [rng.integers(1, vocabulary, n) for n in rng.integers(20, 401, given.items)]
    tokens = sum(map(len, texts))
    few = texts[: min(200, len(texts))]
    sizes = {size: timed(lambda size=size: padded(reference, few, size)) for size in (1, 2, 4, 8, 16, 32)}
    best = min(sizes, key=sizes.__getitem__)
    theirs: dict[str, Callable[[], object]] = {
        f"transformers, padded, batch {best}": lambda: padded(reference, texts, best)
    }
    if (harness := lm_eval_pass(reference, texts)) is not None:
        theirs[f"lm_eval, {harness.__doc__}"] = harness
    times: dict[str, list[float]] = {name: [] for name in ("here", *theirs)}
    numbers = {}
    scoring.score_tokens(model, few, eod=EOD, vocab_size=vocabulary)
    for _ in range(given.repeats):
        began = time.perf_counter()
        numbers = scoring.score_tokens(model, texts, eod=EOD, vocab_size=vocabulary)
        times["here"].append(time.perf_counter() - began)
        for name, work in theirs.items():
            times[name].append(timed(work))
    alone = np.concatenate(padded(reference, texts, 1))
    difference = float(np.abs(numbers["logprob"] - alone).max())
    rates = {name: tokens / statistics.median(values) for name, values in times.items()}
    lines = [
        f"## Six numbers a token: {len(texts):,} items of 20 to 400 random ids ({tokens:,}), in file order",
        "",
        "| | seconds: median (range) | tokens/s | here is faster by |",
        "|---|---|---|---|",
        *(
            f"| {name} | {told(values)} | {rates[name]:,.0f} | {rates['here'] / rates[name]:.2f} |"
            for name, values in times.items()
        ),
        "",
        f"Largest difference of a log-probability to float32, one text at a time: {difference:.1e}.",
        "Batch sizes tried for the padded loop, on "
        f"{len(few)} items: {', '.join(f'{n}: {s:.1f} s' for n, s in sizes.items())}.",
    ]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "scores.parquet"
        offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
        store.write(scoring.table(pl.Series([str(k) for k in range(len(texts))]), offsets, numbers), file)
        lines.append(
            f"The store of these six numbers takes {file.stat().st_size / tokens:.1f} bytes a token."
        )
    return lines


def passages(vocabulary: int, given) -> Texts:
    """``--items`` passages of 200 tokens."""
    if given.texts is None:
        rng = np.random.default_rng(2)
        return [rng.integers(1, vocabulary, 200) for _ in range(given.items)]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(given.model / "tokenizer.json"))
    ids = np.array(tokenizer.encode(given.texts.read_text(encoding="utf-8")).ids)
    found = len(ids) // 200
    if found < given.items:
        raise SystemExit(f"{given.texts} has {found:,} passages of 200 tokens; give --items {found}")
    return [ids[200 * k : 200 * (k + 1)] for k in range(given.items)]


def hubble(reference, model: models.Model, vocabulary: int, given) -> list[str]:
    texts = passages(vocabulary, given)
    some = texts[: given.generated]
    here: dict[str, list[float]] = {}
    theirs: dict[int, list[float]] = {100: [], 500: []}
    passes = []
    for _ in range(given.repeats):
        seconds: dict[str, float] = {}
        copyright_metrics(model, texts, vocabulary, seconds)
        seconds["all"] = sum(seconds.values())
        seconds["all but ROUGE-L (one pass)"] = timed(
            lambda: scoring.score_tokens(model, texts, eod=EOD, vocab_size=vocabulary)
        )
        for name, value in seconds.items():
            here.setdefault(name, []).append(value)
        passes.append(timed(lambda: padded(reference, some, 32)) * len(texts) / len(some))
        for new in theirs:
            theirs[new].append(
                timed(lambda new=new: generated(reference, some, new)) * len(texts) / len(some)
            )
    ours, one_pass = (statistics.median(here[name]) for name in ("all", "all but ROUGE-L (one pass)"))
    lines = [
        f"## Hubble's copyright tasks: {len(texts):,} passages of 200 tokens, "
        + (f"of {given.texts.name}" if given.texts else "random ids"),
        "",
        "| | seconds: median (range) | all of it here is faster by | all but ROUGE-L (one pass) here is faster by |",
        "|---|---|---|---|",
        *(f"| here: {name} | {told(values)} | | |" for name, values in here.items()),
        f"| transformers: log-likelihoods, batch 32 | {told(passes)} | | |",
    ]
    for new, values in theirs.items():
        whole = [a + b for a, b in zip(values, passes, strict=True)]
        lines.append(
            f"| transformers: log-likelihoods and four generations of {new} | {told(whole)} | "
            f"{statistics.median(whole) / ours:.1f} | {statistics.median(whole) / one_pass:.1f} |"
        )
    if len(some) < len(texts):
        lines += [
            "",
            f"What `transformers` needs was timed on {len(some)} of the passages and multiplied by "
            f"{len(texts) / len(some):g}.",
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--texts", type=Path, help="text for the passages; needs --model")
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--generated", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    if given.threads:
        torch.set_num_threads(given.threads)
    reference = tiny(given.model)
    model = models.of_huggingface(reference)
    vocabulary = reference.config.vocab_size
    asked = " ".join(Path(one).name for one in sys.argv[1:])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    packages = ["torch", "transformers", "polars", *(["lm_eval"] if find_spec("lm_eval") else [])]
    weights = sum(p.numel() for p in reference.parameters())
    lines = [
        f"# Scoring, {time.strftime('%Y-%m-%d')}",
        "",
        f"`PYTHONPATH=. python benchmarks/scoring.py {asked}` at commit {commit.strip()}, on "
        f"{os.cpu_count()} cores ({platform.machine()}, no GPU), {torch.get_num_threads()} threads, load average "
        f"{os.getloadavg()[0]:.1f} before, Python {platform.python_version()}, "
        f"{', '.join(f'{name} {version(name)}' for name in packages)}. {weights / 1e6:.1f}M parameters, "
        f"vocabulary {vocabulary:,}, {'exported checkpoint' if given.model else 'random weights'}, float32. "
        f"{given.repeats} repeats, arms in turn.",
        "",
        *mixed_lengths(reference, model, vocabulary, given),
        "",
        *hubble(reference, model, vocabulary, given),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
