"""All that wants a GPU, by one command on one GPU in at most ten minutes: ``make gpu``.

    PYTHONPATH=. python -m benchmarks.gpu [--out results/gpu_DATE.md]
    PYTHONPATH=. python -m benchmarks.gpu --rehearse    # no GPU: every part in miniature on the CPU

Parts, each in processes of its own with a time limit; one that fails is told in the file, and the others go on. The
first four measure no speed and run side by side, the others one after the other:

- ``experiment``: quickstart with 60 steps end to end on the GPU, trained there once more with the same bits
  (``train.deterministic=true``), and its losses beside the CPU's;
- ``programs``: run, generate, export and every post-training method, of a small model;
- ``memory``: the most that a step allocated beside the preflight's figure;
- ``tests``: those marked ``gpu``;
- ``training``: a step of ``hubble_1b``: local layers compiled, and Transformer Engine's where it is installed, beside
  ``transformers`` with ``torch.compile``, also with Liger where it is installed (``benchmarks/training.py``);
- ``scoring``: six numbers a token of texts of 2,048 tokens, beside log-softmax and gather around ``transformers``;
- ``checkpoints``: a checkpoint of ``hubble_1b`` with its optimizer, saved and loaded.

Without a GPU and without ``--rehearse`` it ends with status 2.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
MINUTES = 10.0
BESIDE = {"experiment": 200, "programs": 200, "memory": 100, "tests": 150}
"""Part that runs beside the others -> seconds after which it is stopped."""
PARTS = BESIDE | {"training": 230, "scoring": 60, "checkpoints": 120}
"""Part -> seconds after which it is stopped; in the order in which they run."""
REHEARSED = 5
"""Factor of these times in a rehearsal: CPUs may be slow, and busy."""
GIB = 2**30


def run(command: list[str], seconds: float, **options: Any) -> str:
    """Output of a command; it and all that it started are stopped after so many seconds.

    Raises:
        RuntimeError: with the last lines of it, if it fails or takes longer.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
        out, _ = process.communicate()
        raise RuntimeError(f"stopped after {seconds:.0f} s; it had printed: {out[-500:].strip()}") from None
    if process.returncode:
        lines = [line for line in (err + out).splitlines() if line.strip()]
        raise RuntimeError(f"status {process.returncode}: {' | '.join(lines[-3:])[-600:]}")
    return out


def _limit(part: str, rehearse: bool) -> float:
    """Seconds after which a part is stopped."""
    return PARTS[part] * (REHEARSED if rehearse else 1)


def tests(*, rehearse: bool) -> Iterator[str]:
    """The tests marked ``gpu``; in a rehearsal they are collected, and skipped with their reason."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-p", "no:cacheprovider"]
    out = run([*command, "tests/pretrain/test_gpu.py"], _limit("tests", rehearse), cwd=ROOT)
    yield f"`pytest -m gpu`: {out.strip().splitlines()[-1]}"


def experiment(*, rehearse: bool) -> Iterator[str]:
    """Quickstart, shortened, on the GPU end to end, trained again, and on the CPU; a rehearsal trains twice there."""
    import json

    import torch

    from palimpsest.pretrain import checkpoint

    device = "cpu" if rehearse else "cuda"
    experiment, steps = ("small", 20) if rehearse else ("quickstart", 60)
    common = [f"+experiment={experiment}", "train.deterministic=true", "runtime.attention=sdpa"]
    if rehearse:
        common.insert(0, f"--config-dir={ROOT / 'tests' / 'conf'}")
    else:
        common += [
            "corpus.source.packages=false",
            f"train.steps={steps}",
            f"train.checkpoint_every={steps}",
            "insertion.doses=[0,1,4]",
            "insertion.max_share=0.5",
        ]
    with tempfile.TemporaryDirectory() as place:
        if rehearse:
            from tests.conftest import write_text

            write_text(Path(place, "text.jsonl"))

        def program(name: str, *more: str) -> None:
            script = str(ROOT / "launch" / f"{name}.py")
            run([sys.executable, script, *common, *more], _limit("experiment", rehearse), cwd=place)

        def records(name: str) -> tuple[list[float], dict[str, Any]]:
            (found,) = Path(place, "runs", experiment).glob(f"{name}-*/perturbed")
            lines = (found / "metrics.jsonl").read_text().splitlines()
            path = checkpoint.path_of(found / "checkpoints", steps)
            return [json.loads(line)["loss"] for line in lines], checkpoint.tensors(path)

        began = time.perf_counter()
        if rehearse:  # without scores and report, which take minutes on a CPU
            program("prepare")
        else:
            program("run", "name=one", f"runtime.device={device}")
        seconds = time.perf_counter() - began
        trained = (("one", device),) if rehearse else (("cpu", "cpu"),)
        for name, where in (*trained, ("other", device)):
            program("plan", f"name={name}")
            program("train", f"name={name}", f"runtime.device={where}")
        one, weights = records("one")
        other, again = records("other")
        same = one == other and all(torch.equal(weights[key], again[key]) for key in weights)
        if not rehearse:
            yield f"- `launch/run.py` with {steps} steps on {device}: {seconds:.0f} s, to the report."
        yield f"- Trained again with `train.deterministic=true`: {'the same bits' if same else '**OTHER BITS**'}."
        cpu = other if rehearse else records("cpu")[0]
        away = max(abs(a - b) for a, b in zip(one, cpu, strict=True))
        yield f"- Largest difference of a step's loss from the CPU's, of {len(one)}: {away:.1e} nats (fp32)."


def programs(*, rehearse: bool) -> Iterator[str]:
    """All programs that load a model, of a small pair: post-training methods next to each other, each in a copy."""
    from tests.conftest import write_text

    methods = sorted(
        path.stem for path in (ROOT / "conf" / "posttrain").glob("*.yaml") if path.stem != "base"
    )
    first, *others = ["grad_diff", "int8"] if rehearse else ["grad_diff", *(set(methods) - {"grad_diff"})]
    common = [
        f"--config-dir={ROOT / 'tests' / 'conf'}",
        "+experiment=small",
        "name=one",
        "insertion.doses=[0,1,8]",
        "insertion.max_share=0.9",
        f"runtime.device={'cpu' if rehearse else 'cuda'}",
        "generate.samples=2",
        "generate.max_tokens=8",
        "posttrain.rows=4",
        "posttrain.micro_rows=2",
    ]
    failed: list[str] = []

    def tried(place: Path, name: str, *more: str) -> None:
        script = str(ROOT / "launch" / f"{name}.py")
        try:
            run([sys.executable, script, *common, *more], _limit("programs", rehearse) / 2, cwd=place)
        except RuntimeError as error:
            failed.append(f"{' '.join([name, *more])}: {error}")

    def method(place: Path, name: str) -> None:
        own = shutil.copytree(place, place.parent / name)
        tried(
            own,
            "posttrain",
            f"posttrain={name}",
            *(() if name == "retrain" else ("posttrain.learning_rate=1e-3",)),
        )

    with (
        tempfile.TemporaryDirectory() as name,
        ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool,
    ):
        place = Path(name, "first")
        place.mkdir()
        write_text(place / "text.jsonl")
        tried(place, "run")
        tried(place, "posttrain", f"posttrain={first}")  # trains the leave-out twin
        later = [pool.submit(method, place, other) for other in others]
        for one in ("generate", "export"):
            later.append(pool.submit(tried, shutil.copytree(place, place.parent / one), one))
        for one in later:
            one.result()
    asked = ["run", "generate", "export", f"posttrain with {1 + len(others)} methods"]
    whole = 4 + len(others)
    yield f"- {whole - len(failed)} of {whole} programs ended well: {', '.join(asked)}."
    for line in failed:
        yield f"- **Failed**: {line}"


def training(*, rehearse: bool) -> Iterator[str]:
    """``benchmarks/training.py`` with few steps."""
    few = ["--rounds", "3", "--steps", "2"]
    if rehearse:
        few = [
            "--rounds",
            "1",
            "--steps",
            "1",
            "--batch",
            "2",
            "--micro",
            "1",
            "--precisions",
            "bf16",
            "--threads",
            "1",
        ]
    out = run(
        [sys.executable, "-m", "benchmarks.training", "--device", "cuda", *few],
        _limit("training", rehearse),
        cwd=ROOT,
    )
    yield from ("#" + line if line.startswith("## ") else line for line in out.splitlines()[2:])


def _task(*, rehearse: bool) -> Any:
    """``hubble_1b``, 64 windows of 2,048 tokens a step, 8 at once; in a rehearsal a small model on the CPU."""
    from benchmarks.training import Task, preset
    from palimpsest.pretrain.config import TrainConfig

    batch, micro, length = (4, 2, 64) if rehearse else (64, 8, 2048)
    train = TrainConfig(
        steps=2,
        global_batch_size=batch,
        micro_batch_size=micro,
        sequence_length=length,
        seed=1,
        precision="bf16",
        checkpoint_every=1,
    )
    return Task(
        arm="here",
        model=preset("nano" if rehearse else "hubble_1b"),
        train=train,
        vocabulary=512 if rehearse else 50_304,
        device="cpu" if rehearse else "cuda",
        threads=0,
        compiled=None,
    )


def _settings(task: Any) -> Any:
    from benchmarks.training import ADAMW
    from palimpsest.pretrain.config import ParallelConfig
    from palimpsest.pretrain.settings import Settings

    return Settings(model=task.model, optimizer=ADAMW, train=task.train, parallel=ParallelConfig())


def _trainer(task: Any, world: Any, place: Path) -> Any:
    from benchmarks.training import RandomWindows
    from palimpsest.pretrain.trainer import Trainer

    return Trainer(
        _settings(task),
        world,
        order=RandomWindows(task),
        plan=None,
        vocab_size=task.vocabulary,
        directory=place,
    )


def checkpoints(*, rehearse: bool) -> Iterator[str]:
    """Time to save and to load a checkpoint with its optimizer, the digests of its files among it."""
    from palimpsest.pretrain import parallel
    from palimpsest.pretrain.config import ParallelConfig, RuntimeConfig

    task = _task(rehearse=rehearse)
    with (
        tempfile.TemporaryDirectory() as name,
        parallel.start(ParallelConfig(), RuntimeConfig(device=task.device)) as world,
    ):
        place = Path(name)
        trainer = _trainer(task, world, place)
        trainer.checkpointer.due = frozenset()
        trainer.run(until=1)
        began = time.perf_counter()
        trainer._save([trainer.ledger])
        saved = time.perf_counter() - began
        size = sum(path.stat().st_size for path in place.rglob("*.distcp")) / GIB
        del trainer
        yield f"- {task.model.name}, {size:.2f} GiB: saved in {saved:.1f} s ({size / saved:.2f} GiB/s)."
        again = _trainer(task, world, place)
        began = time.perf_counter()
        again.resume()
        loaded = time.perf_counter() - began
        assert again.step == 1
        yield f"- Checked and loaded in {loaded:.1f} s ({size / loaded:.2f} GiB/s), from the disk of temporary files."


def memory(*, rehearse: bool) -> Iterator[str]:
    """The most that two steps allocated, beside what the preflight says of them."""
    import torch

    from palimpsest.pretrain import parallel, preflight
    from palimpsest.pretrain.config import ParallelConfig, RuntimeConfig

    task = _task(rehearse=rehearse)
    (said,) = preflight.stages(_settings(task), task.vocabulary, 1)  # forks, so before CUDA starts
    with (
        tempfile.TemporaryDirectory() as place,
        parallel.start(ParallelConfig(), RuntimeConfig(device=task.device)) as world,
    ):
        trainer = _trainer(replace(task, train=replace(task.train, checkpoint_every=2)), world, Path(place))
        trainer.checkpointer.due = frozenset()
        trainer.run(until=2)
        yield f"- Preflight: {said.total / GIB:.3f} GiB of tensors, {preflight.needed(said):.1f} GiB with overheads."
        if task.device == "cpu":
            yield "- Not measured: there is no GPU."
            return
        found, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        free, whole = torch.cuda.mem_get_info()
        yield (
            f"- Allocated at most {found / GIB:.2f} GiB ({found / said.total - 1:+.1%} of the preflight's), reserved "
            f"{held / GIB:.2f} GiB; in use on the GPU {(whole - free) / GIB:.2f} GiB."
        )


def scoring(*, rehearse: bool) -> Iterator[str]:
    """Tokens a second of the scorer and of a plain loop, of the same model of ``transformers`` in bf16."""
    import numpy as np
    import torch
    import transformers

    from palimpsest.analysis.scoring import huggingface, token_statistics
    from palimpsest.pretrain import estimate
    from palimpsest.pretrain.huggingface import shapes

    task = _task(rehearse=rehearse)
    device, length = torch.device(task.device), task.train.sequence_length
    settings = shapes.settings(
        task.model, task.vocabulary, sequence_length=length, eod=0, dtype=torch.bfloat16
    )
    with torch.device(device):
        reference = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).eval()
    model = huggingface.of_huggingface(reference)
    rng = np.random.default_rng(1)
    texts = [rng.integers(1, task.vocabulary, length - 1) for _ in range(4 if rehearse else 128)]
    tokens = sum(map(len, texts))

    @torch.inference_mode()
    def plain() -> Any:
        found = []
        for first in range(0, len(texts), 4):
            ids = torch.from_numpy(np.stack([np.append(0, text) for text in texts[first : first + 4]])).to(
                device
            )
            logits = reference(input_ids=ids[:, :-1], use_cache=False).logits.float()
            found.append(logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0].cpu().numpy())
        return np.concatenate(found)

    def here() -> Any:
        return token_statistics.score_tokens(model, texts, eod=0, vocab_size=task.vocabulary)["logprob"]

    peak = None if rehearse else estimate.peak_flops(torch.cuda.get_device_name())
    # A training step has three times the products of a forward pass.
    flops = estimate.flops_per_token(task.model, task.vocabulary, length) / 3
    yield f"{len(texts)} texts of {length - 1:,} tokens, {task.model.name} in bf16, no text begins another."
    yield ""
    yield "| | tokens/s | of the peak |"
    yield "|---|---|---|"
    numbers = {}
    for name, arm in (("here, six numbers a token", here), ("transformers, one number", plain)):
        arm()
        began = time.perf_counter()
        numbers[name] = arm()
        speed = tokens / (time.perf_counter() - began)
        yield f"| {name} | {speed:,.0f} | {f'{speed * flops / peak:.1%}' if peak else ''} |"
    one, other = (np.ravel(values) for values in numbers.values())
    yield ""
    yield f"Mean difference of a log-probability, both in bf16: {np.abs(one - other).mean():.1e} nats."


def heading(command: str, device_name: str) -> list[str]:
    """Title, machine and versions."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    found = []
    for name in (
        "torch",
        "triton",
        "megatron-core",
        "transformers",
        "transformer-engine",
        "liger-kernel",
        "flash-attn",
    ):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return [
        f"# On a GPU, {time.strftime('%Y-%m-%d')}",
        "",
        f"`{command}` at commit {commit or 'unknown'}, {device_name}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {', '.join(found)}.",
        "",
    ]


def measured(part: str, *, rehearse: bool, seconds: float) -> tuple[list[str], bool]:
    """Lines of a part, and if it passed."""
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, *(["--rehearse"] if rehearse else [])]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    try:
        out = run(command, seconds, cwd=ROOT, env=environment).strip()
        passed = "**Failed**" not in out
    except RuntimeError as error:
        out, passed = f"**Failed**: {error}", False
    taken = f"{time.monotonic() - began:.0f} s"
    return [f"## {part.capitalize()} ({taken})", "", *out.splitlines(), ""], passed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="each part in miniature on the CPU")
    parser.add_argument("--part", choices=PARTS, help="print this one alone")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    import torch

    # The parts start CUDA in processes of their own; here only the driver is asked.
    if not given.rehearse and not torch.cuda.is_available():
        print(
            "palimpsest: PyTorch sees no GPU here; --rehearse runs every part in miniature on the CPU",
            file=sys.stderr,
        )
        raise SystemExit(2)
    if given.part:
        for line in globals()[given.part](rehearse=given.rehearse):
            print(line, flush=True)
        return
    name = (
        "no GPU: in miniature on the CPU, which shows that it runs"
        if given.rehearse
        else (torch.cuda.get_device_name())
    )
    lines = heading(f"python -m benchmarks.gpu {' '.join(sys.argv[1:])}".strip(), name)
    out = given.out or (None if given.rehearse else ROOT / "results" / f"gpu_{time.strftime('%Y-%m-%d')}.md")
    until, failed = time.monotonic() + 60 * MINUTES, []

    def part(name: str) -> tuple[str, list[str], bool]:
        seconds = _limit(name, given.rehearse)
        if not given.rehearse:
            seconds = min(seconds, max(5.0, until - time.monotonic()))
        return name, *measured(name, rehearse=given.rehearse, seconds=seconds)

    beside = [name for name in given.parts if name in BESIDE]
    after = [name for name in given.parts if name not in BESIDE]
    with ThreadPoolExecutor(1 if given.rehearse else len(BESIDE)) as pool:
        for name, told, passed in chain(pool.map(part, beside), map(part, after)):
            failed += [] if passed else [name]
            print("\n".join(told), flush=True)
            lines += told
            if out:  # after each part: what was measured stays, should this be stopped
                out.write_text("\n".join(lines))
    if out:
        print(f"written to {out}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
