"""``--help`` of the programs that run an experiment: purpose, settings and three examples of each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EVERY = "--help-all"
"""Option that lists every setting of an experiment (Hydra's own help)."""
RUN = "runs/quickstart"


@dataclass(frozen=True, slots=True)
class Help:
    """Help of one program."""

    purpose: str
    settings: Sequence[tuple[str, str]]
    examples: Sequence[str]


QUICK = "+experiment=quickstart"
PROGRAMS = {
    "run": Help(
        "Carry out an experiment: prepare, plan, train the pair, audit, score, report; finished stages are reused.",
        [
            ("dry_run=true", "say what would be made and reused, and what it costs"),
            ("name=NAME", "of the run; runs/<experiment>/NAME-<digest>/ holds everything it makes"),
            ("seed=N", "of initial weights, data order, items, assignment and placement"),
        ],
        [QUICK, f"{QUICK} dry_run=true", f"{QUICK} insertion=table insertion.families.table.path=items.jsonl"],
    ),
    "prepare": Help(
        "Turn text into token files, a tokenizer and held-out documents.",
        [
            ("shard=K/N", "do share K of N, for an array of jobs; run all of them twice, then prepare without it"),
            ("index=true", "also build the order of the windows; needed before training on several nodes"),
            ("verify=true", "read the whole corpus again and check every file and every id"),
            ("show=S", "print what step S reads, and from where"),
        ],
        [QUICK, f"{QUICK} corpus=jsonl corpus.source.paths=[my.jsonl]", f"{RUN} show=3"],
    ),
    "plan": Help(
        "Decide which text goes where, and when; explain a finished plan.",
        [
            ("show", "print the plan: doses and when they fall; item=ID or step=S for one item or batch"),
            ("item=ID", "every exposure in its place; checkpoint=S: those before it; ledger=true: what was consumed"),
            ("family=NAME show=N", "print the first N items of a family with their probes"),
            ("power=true", "print the smallest effects that the design can show; effect=X: items that X takes"),
        ],
        [QUICK, f"show {RUN} item=ghost-00003", f"{QUICK} power=true effect=0.3"],
    ),
    "train": Help(
        "Train one of the pair, from its last checkpoint on.",
        [
            ("run=twin", "train the twin, in which nothing is inserted, instead of the perturbed run"),
            ("dry_run=true", "print the configuration and what it costs"),
            ("preflight=RANKS", "rehearse the topology without a GPU; gpu_gib=N: memory of a GPU"),
        ],
        [QUICK, f"{RUN} run=twin", "+experiment=hubble_8b parallel.tensor=8 preflight=64 gpu_gib=80"],
    ),
    "audit": Help(
        "Prove that what was consumed is what was planned. Status 3: it is not.",
        [("dry_run=true", "say whether there is an audit")],
        [QUICK, RUN, f"{QUICK} name=other"],
    ),
    "score": Help(
        "Ask every checkpoint of the pair about every item; scores that are there are kept.",
        [("shard=K/N", "do share K of N, for an array of jobs")],
        [QUICK, RUN, f"{RUN} shard=0/4"],
    ),
    "generate": Help(
        "Let checkpoints of the pair continue items and prompts, greedily and drawn; then write the report with them.",
        [
            ("step=S", "finished steps of the checkpoint, or all; the last one without it"),
            ("generate.prefix_tokens=[N,...]", "tokens of each item that are continued"),
            ("generate.samples=K", "continuations drawn of each prompt; generate.temperature, top_k, top_p, seed"),
            ("shard=K/N", "do share K of N, for an array of jobs; no report then"),
        ],
        [QUICK, f"{RUN} generate.samples=8 generate.temperature=0.7", f"{RUN} step=all generate.prefix_tokens=[8,32]"],
    ),
    "report": Help(
        "Write the page, its figures and tables, and say what was found.",
        [
            ("report.metrics=[NAME,...]", "more measures, by their names in analysis/metrics"),
            ("report.prefix_tokens=N", "prompt of verbatim extraction; report.suffix_tokens: what follows it"),
            ("report.out=DIRECTORY", "write it there; the run is only read"),
        ],
        [QUICK, f"{RUN} report.metrics=[min_k_logprob]", f"{RUN} report.out=mine"],
    ),
    "posttrain": Help(
        "Unlearn some of the inserted items, and compare with the twin that never saw them.",
        [
            ("posttrain=NAME", "the method: npo, simnpo, dpo, rmu, undial, ..., int4, prune, kfac, distill, retrain"),
            ("posttrain.after=RUN", "go on from a post-trained run or leave_out: posttrain=relearn, for example"),
            ("posttrain.retain=X", "corpus, items or questions: what is to be kept, or learnt"),
            ("posttrain.forget.share=X", "of the inserted items of each arm and family; 1: all of them"),
            ("posttrain.steps=N", "steps of the method; posttrain.learning_rate=X: of AdamW, constant"),
            ("+posttrain.settings.KEY=X", "of the method: beta, ...; gamma and alpha weigh forget and retain set"),
        ],
        [QUICK, f"{QUICK} posttrain=simnpo posttrain.steps=40", f"{RUN} posttrain.forget.share=1"],
    ),
    "export": Help(
        "Write a checkpoint for transformers, with tokenizer and model card.",
        [("run=twin", "of the twin"), ("step=S", "finished steps of the checkpoint, or all; the last one without it")],
        [QUICK, f"{RUN} step=all", f"{RUN} run=twin"],
    ),
    "write_corpus": Help(
        "Write the perturbed corpus as files, for other trainers.",
        [("format=jsonl", "a line a window, in training order; without it token files of Megatron")],
        [QUICK, RUN, f"{RUN} format=jsonl"],
    ),
    "export_items": Help(
        "Write a plan's items for other tools: lm-eval tasks, membership benchmarks, forget and retain sets.",
        [("seed=N", "also that of the draw of the forget set")],
        [QUICK, RUN, f"{QUICK} name=other"],
    ),
    "adaptive": Help(
        "Train segment by segment; a policy decides the doses from the scores.",
        [("insertion.adaptive={...}", "policy (insert_until, maintain, staircase), at=[steps], threshold, ...")],
        [
            f"{QUICK} insertion=ghost_sentences insertion.doses=[0,1] "
            "'insertion.adaptive={policy: insert_until, at: [50,100,150,200], threshold: 0.3}'",
            f"{QUICK} insertion=ghost_sentences insertion.doses=[0,1] "
            "'insertion.adaptive={policy: staircase, at: [50,100], threshold: 0.3}'",
            RUN,
        ],
    ),
    "dependence": Help(
        "Train experiments that share a run each alone and all together, and estimate their interaction.",
        [("insertion.experiments.NAME={...}", "an experiment with its own seed, windows and token budget")],
        [
            f"{QUICK} insertion=shared",
            f"{QUICK} insertion=shared train.steps=200",
            f"{QUICK} insertion=shared seed=2",
        ],
    ),
    "sweep": Help(
        "Make a run of every combination of the settings that have several values; the same command goes on.",
        [
            ("KEY=A,B,C", "a factor: every value with every value of the others"),
            ("launcher.jobs=K", "K runs at a time"),
            ("launcher=slurm", "as SLURM arrays (conf/launcher/); launcher=report: only the report of what is there"),
            ("launcher.nodes=N", "nodes of a training; launcher.processes, gpus: of a node; launcher.time: at most"),
            ("dry_run=true", "say what would be made; with launcher=slurm write the scripts and print the submission"),
        ],
        [
            f"{QUICK} seed=1,2,3 model=nano,tiny launcher.jobs=2",
            f"{QUICK} seed=1,2,3 launcher=slurm launcher.account=me",
            f"{QUICK} seed=1,2,3 launcher=slurm_gpu launcher.account=me dry_run=true",
        ],
    ),
}  # fmt: skip


def name() -> str:
    """Name of the running program."""
    return Path(sys.argv[0].split()[-1]).stem


def asked(arguments: Sequence[str]) -> str | None:
    """Help text for a command line; None if it does not ask for help, or asks for every setting (:data:`EVERY`)."""
    if not {"--help", "-h"} & {*arguments} or name() not in PROGRAMS:
        return None
    program = PROGRAMS[name()]
    by_directory = name() != "sweep"
    usage = "+experiment=NAME | RUN" if by_directory else "+experiment=NAME"
    run = "RUN is a run's directory, whose settings it has: runs/quickstart/run-1a2b3c4d, or what is unique of that."
    width = max(len(key) for key, _ in program.settings)
    return "\n".join(
        [
            f"usage: palimpsest {name()} ({usage}) [KEY=VALUE ...]",
            "",
            program.purpose,
            "",
            "Its own settings:",
            *(f"  {key:{width}}  {meaning}" for key, meaning in program.settings),
            "",
            "Examples:",
            *(f"  palimpsest {name()} {example}" for example in program.examples),
            "",
            *([run] if by_directory else []),
            "KEY=VALUE changes any setting; experiments are the files of conf/experiment/.",
            f"{EVERY} lists all settings, --cfg job prints the result.",
            "Status: 0 done, 1 a bug, 2 something you can mend, 3 the audit failed or a batch was not as planned,",
            "75 told to stop by a signal and saved: run it again.",
            "",
        ]
    )
