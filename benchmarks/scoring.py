"""Scoring against what others do with the same model on the same machine.

    python benchmarks/scoring.py [--model DIRECTORY] [--out results/scoring_DATE.md]

On a ``tiny`` model (an exported checkpoint with ``--model``, otherwise one with random weights): six numbers a token on
2,000 items of 20 to 400 random ids, against a padded ``transformers`` loop in file order at its best batch size, which
takes log-softmax and gather alone, and against ``lm_eval`` where it is installed. Beside the times stands the largest
difference of a log-probability to ``transformers``, one text at a time.

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

from palimpsest.analysis.scoring import huggingface, models, store, token_statistics

EOD = 0
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
    token_statistics.score_tokens(model, few, eod=EOD, vocab_size=vocabulary)
    for _ in range(given.repeats):
        began = time.perf_counter()
        numbers = token_statistics.score_tokens(model, texts, eod=EOD, vocab_size=vocabulary)
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
        store.write(
            token_statistics.table(pl.Series([str(k) for k in range(len(texts))]), offsets, numbers), file
        )
        lines.append(
            f"The store of these six numbers takes {file.stat().st_size / tokens:.1f} bytes a token."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    if given.threads:
        torch.set_num_threads(given.threads)
    reference = tiny(given.model)
    model = huggingface.of_huggingface(reference)
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
    ]
    text = "\n".join(lines)
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
