"""The programs by one name: ``palimpsest run ...`` is ``python launch/run.py ...``."""

from __future__ import annotations

import sys
from importlib import import_module

from palimpsest.data.errors import nearest

PROGRAMS = {
    "run": "a whole experiment: prepare, plan, train the pair, audit, score, report",
    "prepare": "turn text into tokens",
    "plan": "draw items, doses and places; plan show prints the plan",
    "train": "train the perturbed run or its twin (several processes: torchrun -m palimpsest.launch.train)",
    "adaptive": "training in which a policy decides the doses",
    "audit": "prove that what was planned was consumed",
    "score": "log-probabilities of all probes at every checkpoint",
    "generate": "continuations of items and prompts by checkpoints, and the report with them",
    "attack": "membership attacks with passes of their own, and the report with them",
    "derived": "order test: was a model trained from this run's data?",
    "report": "estimates, tables, figures and the page",
    "show": "tables of a run: gains, items, exposures of an item",
    "sweep": "many runs, here or as SLURM arrays",
    "replicate": "replications of published findings, with declared tests",
    "runs": "list runs; runs prune frees disk",
    "watch": "a run's progress in a browser",
    "posttrain": "unlearn chosen items, and compare with the leave-out twin",
    "export": "a checkpoint for transformers",
    "export_items": "a plan's items for lm-eval, membership benchmarks and open-unlearning",
    "released": "score and report models that others have trained",
    "dependence": "do experiments that share a run influence each other?",
    "import_plan": "a plan from insertions made elsewhere",
    "write_corpus": "the perturbed corpus as files, for other trainers",
    "gallery": "every figure, drawn from simulated data",
    "manual": "the reference pages, written from the code",
}


def main() -> None:
    """Start the program that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        width = max(map(len, PROGRAMS))
        lines = [f"  {program:{width}}  {text}" for program, text in PROGRAMS.items()]
        sys.stdout.write(
            "\n".join(["usage: palimpsest PROGRAM [SETTING=VALUE ...]", "", *lines, ""])
            + "\npalimpsest PROGRAM --help: what it takes\n"
        )
        return
    if name not in PROGRAMS:
        sys.stderr.write(f"palimpsest: {name}: there is no such program{nearest(name, PROGRAMS)}\n")
        sys.exit(2)
    sys.argv[:] = [f"palimpsest {name}", *sys.argv[2:]]
    import_module(f"palimpsest.launch.{name}").main()
