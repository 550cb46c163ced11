"""A training step against the same model in ``transformers``.

    PYTHONPATH=. python benchmarks/training.py [--out results/training_DATE.md]
    PYTHONPATH=. python benchmarks/training.py --device cuda [--out results/training_gpu_DATE.md]

On a CPU: ``nano`` and ``tiny``, each in fp32 and bf16. On a GPU: ``hubble_1b`` in bf16 on windows of 2,048 tokens,
with the local layers and, where Transformer Engine is installed, with its own; beside them a plain loop around
``transformers`` with ``torch.compile``, and one with Liger's kernels where they are installed.
``--models``, ``--length``, ``--batch`` and ``--micro`` make it smaller.

Every arm is a process of its own, so that none has another's settings or patches. All start from the same weights, read
the same windows and take the same steps of AdamW (clipped at 1, matrices decayed): their losses are told, and must
agree. Ours is the whole ``pretrain.trainer.Trainer``: reading and checking windows, ledger, guards, telemetry.
The arms of ``transformers``:

- fp32, or bf16 by ``torch.autocast`` over fp32 weights (what its ``Trainer`` does for ``bf16=True``), which keeps
  what ours keeps in fp32, weights and Adam's state;
- ``all bf16``: weights and Adam's state in bf16, which is less precise than ours and is told for completeness.

On a CPU the arms take turns, ``--rounds`` times, after steps that are not timed; medians are told. On a GPU they run
one after the other, each with the memory for itself. Where there is none, ``--device cuda`` runs the same code with a
small model on the CPU, which shows that it runs, and nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir

from palimpsest.launch.compose import CONF, build
from palimpsest.launch.replicate import hardware
from palimpsest.pretrain import estimate
from palimpsest.pretrain.config import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RuntimeConfig,
    TrainConfig,
)

ADAMW = OptimizerConfig(learning_rate=1e-3, min_learning_rate=1e-3, warmup_steps=0, schedule="constant")
UNTIMED = 3
"""Steps before the first that is timed."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Model, data and precision that one arm trains."""

    arm: str
    model: ModelConfig
    train: TrainConfig
    vocabulary: int
    device: str
    threads: int
    compiled: str | None
    """Backend of ``torch.compile``."""

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.train.global_batch_size * self.train.sequence_length


class RandomWindows:
    """Windows of random tokens, the same for all arms, in place of a corpus."""

    identity = "random"

    def __init__(self, task: Task) -> None:
        rng = np.random.default_rng(1)
        shape = (64, task.train.sequence_length + 1)
        self.windows = rng.integers(1, task.vocabulary, shape, dtype=np.int64)

    def require(self, windows: int) -> None:
        """There are always enough."""

    def window(self, position: int) -> np.ndarray:
        """The same 64 over and over."""
        return self.windows[position % len(self.windows)]


def ours(task: Task, weights: Path, place: Path) -> Iterator[float]:
    """The trainer; yields the loss of each step."""
    from dataclasses import replace

    from palimpsest.pretrain import parallel
    from palimpsest.pretrain.settings import Settings
    from palimpsest.pretrain.telemetry import Writer
    from palimpsest.pretrain.trainer import Trainer

    class Unsaved(Trainer):
        """No checkpoints between the steps that are timed."""

        def _save(self, hooks: object, *, background: bool = False) -> None:
            pass

    runtime = RuntimeConfig(device=task.device, threads=task.threads)
    with parallel.start(ParallelConfig(), runtime) as world:
        trainer = Unsaved(
            Settings(
                model=replace(task.model, weights=str(weights)),
                optimizer=ADAMW,
                train=task.train,
                parallel=ParallelConfig(),
                attention="te" if "Engine" in task.arm else "sdpa",
            ),
            world,
            order=RandomWindows(task),
            plan=None,
            vocab_size=task.vocabulary,
            directory=place,
        )
        records: list[dict[str, Any]] = []

        class Keep(Writer):
            def write(self, record: dict[str, Any]) -> None:
                records.append(record)

        keep = Keep()
        while True:
            trainer.run([keep], until=trainer.step + 1)
            yield records[-1]["loss"]


def theirs(task: Task, weights: Path) -> Iterator[float]:
    """A plain loop around ``transformers``; yields the loss of each step."""
    import torch
    import transformers

    if task.threads:
        torch.set_num_threads(task.threads)
    if "Liger" in task.arm:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(fused_linear_cross_entropy=False)  # that is called below
    device = torch.device(task.device)
    low = task.train.precision == "bf16"
    reduced = task.arm == "transformers, all bf16"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        weights, dtype=torch.bfloat16 if reduced else torch.float32, attn_implementation="sdpa"
    ).to(device)
    model.train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    adamw = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=ADAMW.learning_rate,
        betas=(ADAMW.beta1, ADAMW.beta2),
        eps=ADAMW.epsilon,
        weight_decay=ADAMW.weight_decay,
        fused=True,
    )
    loss_of = _losses(model, task)
    order, train, position = RandomWindows(task), task.train, 0
    parts = train.global_batch_size // train.micro_batch_size
    cast = torch.autocast(device.type, torch.bfloat16) if low and not reduced else nullcontext()
    while True:
        total = torch.zeros((), device=device)
        for _ in range(parts):
            rows = [order.window(position + row) for row in range(train.micro_batch_size)]
            position += train.micro_batch_size
            windows = torch.from_numpy(np.stack(rows)).to(device)
            with cast:
                loss = loss_of(windows[:, :-1], windows[:, 1:])
            (loss / parts).backward()
            total += loss.detach() / parts
        torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW.clip_grad)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        yield total.item()


def _losses(model: Any, task: Task) -> Callable[[Any, Any], Any]:
    """The mean loss of ids and targets, (B, T) each; of Liger's arm without the logits of all tokens."""
    import torch
    from torch.nn import functional

    def compiled(module: Any) -> Any:
        return torch.compile(module, backend=task.compiled) if task.compiled else module

    if "Liger" in task.arm:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        body, fused = compiled(model.model), LigerFusedLinearCrossEntropyLoss()

        def by_liger(ids: Any, targets: Any) -> Any:
            hidden = body(input_ids=ids, use_cache=False).last_hidden_state
            return fused(model.lm_head.weight, hidden.flatten(0, 1), targets.flatten())

        return by_liger
    forward = compiled(model)

    def plain(ids: Any, targets: Any) -> Any:
        logits = forward(input_ids=ids, use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return plain


def work(task: Task, weights: Path, pipe: Any) -> None:
    """A process: takes a number of steps when told to, and says how long they took."""
    import torch

    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as place:
        steps = ours(task, weights, Path(place)) if task.arm.startswith("here") else theirs(task, weights)
        losses = []
        while (count := pipe.recv()) is not None:
            began = time.perf_counter()
            losses += [next(steps) for _ in range(count)]
            if task.device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
            memory = torch.cuda.max_memory_allocated() if task.device == "cuda" else 0
            pipe.send((seconds, losses[-1], memory))
        steps.close()


class Arm:
    """A process that trains when told to."""

    def __init__(self, task: Task, weights: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.task = task
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(task, weights, other), daemon=True)
        self.process.start()
        other.close()
        self.seconds: list[float] = []
        self.loss, self.memory = 0.0, 0

    def take(self, steps: int, *, timed: bool) -> None:
        """Take steps; ``timed`` ones count."""
        self.pipe.send(steps)
        seconds, self.loss, self.memory = self.pipe.recv()
        if timed:
            self.seconds.append(seconds / steps)

    def end(self) -> None:
        """Let the process end."""
        self.pipe.send(None)
        self.process.join()

    @property
    def speed(self) -> float:
        """Tokens a second, by the median round."""
        return self.task.tokens / statistics.median(self.seconds)


def preset(name: str) -> ModelConfig:
    """A model of ``conf/model``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("config", ["+experiment=quickstart", f"model={name}"])).model


def initial(task: Task, place: Path) -> Path:
    """Random weights in the format of ``transformers``, where every arm starts."""
    import torch
    import transformers

    from palimpsest.pretrain.huggingface import shapes

    settings = shapes.settings(
        task.model,
        task.vocabulary,
        sequence_length=task.train.sequence_length,
        eod=0,
        dtype=torch.float32,
    )
    transformers.set_seed(1)
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(place)
    return place


def measure(tasks: list[Task], rounds: int, steps: int, *, turns: bool) -> list[Arm]:
    """Run the arms of one comparison."""
    with tempfile.TemporaryDirectory() as place:
        weights = initial(tasks[0], Path(place))
        if not turns:
            return [one for task in tasks for one in alone(task, weights, rounds, steps)]
        arms = [Arm(task, weights) for task in tasks]
        for arm in arms:
            arm.take(UNTIMED, timed=False)
        for _ in range(rounds):
            for arm in arms:
                arm.take(steps, timed=True)
        for arm in arms:
            arm.end()
        return arms


def alone(task: Task, weights: Path, rounds: int, steps: int) -> Iterator[Arm]:
    """Run one arm from its beginning to its end."""
    arm = Arm(task, weights)
    try:
        arm.take(UNTIMED, timed=False)
        for _ in range(rounds):
            arm.take(steps, timed=True)
    except EOFError:  # its process ended, and its traceback is above; the other arms go on
        arm.seconds = []
    else:
        arm.end()
        print(f"{task.arm}: {statistics.median(arm.seconds):.4f} s a step", file=sys.stderr, flush=True)
    yield arm


def table(arms: list[Arm], device_name: str) -> Iterator[str]:
    """Lines of the result of one comparison."""
    task, peak = arms[0].task, estimate.peak_flops(device_name)
    weights = task.model.parameters(task.vocabulary, task.train.sequence_length)
    train = task.train
    yield (
        f"## {task.model.name} ({weights / 1e6:,.1f}M parameters), {train.precision}: {train.global_batch_size} "
        f"windows of {train.sequence_length:,} tokens a step, {train.micro_batch_size} at once"
    )
    yield ""
    yield "| arm | seconds a step: median (range) | tokens/s | here is faster by | last loss | MFU | peak GiB |"
    yield "|---|---|---|---|---|---|---|"
    flops = estimate.flops_per_token(task.model, task.vocabulary, train.sequence_length)
    for arm in arms:
        if not arm.seconds:
            yield f"| {arm.task.arm} | failed | | | | | |"
            continue
        told = f"{statistics.median(arm.seconds):.4f} ({min(arm.seconds):.4f}-{max(arm.seconds):.4f})"
        ratio = "" if arm is arms[0] or not arms[0].seconds else f"{arms[0].speed / arm.speed:.2f}"
        share = f"{arm.speed * flops / peak:.1%}" if peak else ""
        memory = f"{arm.memory / 2**30:.1f}" if arm.memory else ""
        yield f"| {arm.task.arm} | {told} | {arm.speed:,.0f} | {ratio} | {arm.loss:.4f} | {share} | {memory} |"
    yield ""


def arms_of(precision: str, device: str) -> list[str]:
    """Names of the arms, ours first."""
    found = ["here"]
    if device == "cuda" and find_spec("transformer_engine") is not None:
        found.append("here, Transformer Engine")
    found.append("transformers")
    if device == "cuda" and find_spec("liger_kernel") is not None:
        found.append("transformers, Liger")
    if precision == "bf16":
        found.append("transformers, all bf16")
    return found


def tasks_of(given: argparse.Namespace) -> Iterator[list[Task]]:
    """One list of tasks a comparison."""
    for name in given.models:
        model = preset(name)
        for precision in given.precisions:
            train = TrainConfig(
                steps=10_000_000,
                global_batch_size=given.batch,
                micro_batch_size=given.micro,
                sequence_length=given.length,
                seed=1,
                precision=precision,
                checkpoint_every=10_000_000,
            )
            yield [
                Task(
                    arm=arm,
                    model=model,
                    train=train,
                    vocabulary=given.vocabulary,
                    device=given.device,
                    threads=given.threads,
                    compiled=given.compiled if arm.startswith("transformers") else None,
                )
                for arm in arms_of(precision, given.device)
            ]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"])
    parser.add_argument("--length", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--micro", type=int)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--steps", type=int, default=5, help="a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    small = {"length": 256, "batch": 16, "micro": 8, "vocabulary": 4096}
    defaults: dict[str, Any] = {"models": ["nano", "tiny"], "precisions": ["fp32", "bf16"], **small}
    given.turns, given.compiled = given.device == "cpu", None
    if given.device == "cuda":
        import torch

        full = {"models": ["hubble_1b"], "length": 2048, "batch": 64, "micro": 8, "vocabulary": 50_304}
        there = torch.cuda.is_available()
        defaults = {
            "precisions": ["bf16"],
            **(full if there else {**small, "models": ["nano"], "length": 64}),
        }
        given.device, given.compiled = ("cuda", "inductor") if there else ("cpu", "eager")
    for name, value in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def main() -> None:
    given = options()
    load = os.getloadavg()[0]
    device_name = hardware()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    packages = ["torch", "megatron-core", "transformers"]
    lines = [
        f"# A training step, {time.strftime('%Y-%m-%d')}",
        "",
        f"`PYTHONPATH=. python benchmarks/training.py {' '.join(sys.argv[1:])}` at commit {commit.strip()}, on "
        f"{device_name}, load average {load:.1f} before, Python "
        f"{platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}. "
        f"{given.rounds} rounds of {given.steps} steps.",
        "",
        *(
            []
            if given.turns or given.device == "cuda"
            else ["In miniature on a CPU: this shows that it runs.", ""]
        ),
    ]
    for tasks in tasks_of(given):
        lines += table(measure(tasks, given.rounds, given.steps, turns=given.turns), device_name)
    text = "\n".join(lines)
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
