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
            ("dry_run=true", "print what would be made and reused, and what it costs"),
            ("name=NAME", "name of the run; runs/<experiment>/NAME-<digest>/ holds everything it makes"),
            ("seed=N", "seed of initial weights, data order, items, assignment and placement"),
        ],
        [QUICK, f"{QUICK} dry_run=true", f"{QUICK} insertion=table insertion.families.table.path=items.jsonl"],
    ),
    "prepare": Help(
        "Turn text into token files, a tokenizer and held-out documents.",
        [
            ("shard=K/N", "do share K of N, for a job array; run all shares twice, then prepare without shard"),
            ("index=true", "also build the order of the windows; needed before training on several nodes"),
            ("verify=true", "read the whole corpus again and check every file and every id"),
            ("show=S", "print the text that step S reads, and its source"),
        ],
        [QUICK, f"{QUICK} corpus=jsonl corpus.source.paths=[my.jsonl]", f"{RUN} show=3"],
    ),
    "plan": Help(
        "Draw items, doses and places, and write the plan; print a finished plan.",
        [
            ("show", "print the plan: doses and when exposures fall; item=ID or step=S for one item or batch"),
            ("item=ID", "its exposures in their windows; checkpoint=S: those before S; ledger=true: as consumed"),
            ("family=NAME show=N", "print the first N items of a family with their probes"),
            ("power=true", "print the smallest detectable effects; effect=X: the number of items that X needs"),
        ],
        [QUICK, f"show {RUN} item=ghost-00003", f"{QUICK} power=true effect=0.3"],
    ),
    "train": Help(
        "Train the perturbed run or its twin; resume from its last checkpoint, if there is one.",
        [
            ("run=twin", "train the twin, in which nothing is inserted, instead of the perturbed run"),
            ("dry_run=true", "print the configuration and what it costs"),
            ("preflight=RANKS", "rehearse the topology without a GPU; gpu_gib=N: memory of a GPU"),
        ],
        [QUICK, f"{RUN} run=twin", "+experiment=hubble_8b parallel.tensor=8 preflight=64 gpu_gib=80"],
    ),
    "audit": Help(
        "Prove that what was consumed is what was planned. Status 3: it is not.",
        [("dry_run=true", "print whether there is an audit")],
        [QUICK, RUN, f"{QUICK} name=other"],
    ),
    "score": Help(
        "Score all probes at every checkpoint of the pair; existing scores are kept.",
        [("shard=K/N", "do share K of N, for a job array")],
        [QUICK, RUN, f"{RUN} shard=0/4"],
    ),
    "generate": Help(
        "Generate continuations of items and prompts, greedily or by sampling, and write the report with them.",
        [
            ("step=S", "finished steps of the checkpoint, or all; default: the last checkpoint"),
            ("generate.prefix_tokens=[N,...]", "number of an item's first tokens that are the prompt"),
            ("generate.samples=K", "samples of each prompt; generate.temperature, top_k, top_p, seed"),
            ("shard=K/N", "do share K of N, for a job array; no report then"),
        ],
        [QUICK, f"{RUN} generate.samples=8 generate.temperature=0.7", f"{RUN} step=all generate.prefix_tokens=[8,32]"],
    ),
    "attack": Help(
        "Membership attacks with passes of their own, at checkpoints of the pair, and the report with them.",
        [
            ("step=S", "finished steps of the checkpoint, or all; default: the last checkpoint"),
            ("attack.names=[NAME,...]", "recall, con_recall, neighbourhood, gradient_norm, dc_pdd; default: all"),
            ("attack.shots=K", "texts in a prefix; attack.neighbours, replaced, seed"),
            ("shard=K/N", "do share K of N, for a job array; no report then"),
        ],
        [QUICK, f"{RUN} attack.names=[recall] attack.shots=8", f"{RUN} step=all"],
    ),
    "derived": Help(
        "Test whether models were trained from this run, or wrote a text, by the order of its windows; then report.",
        [
            ("derived.models=[MODEL,...]", "perturbed, or a model of transformers: a directory, or a name on the hub"),
            ("derived.reference=reference", "subtract a model trained on the corpus in another order; default: none"),
            ("derived.windows=N", "windows that are read; derived.seed"),
            ("derived.texts=[FILE,...]", "texts to test: .jsonl, .json, .csv or .parquet with 'text', or plain text"),
            ("derived.reshuffled=19", "times that the run's end is trained again in other orders, for the texts"),
            ("derived.since=STEP", "from this checkpoint on; default: the last one in the first half"),
        ],
        [
            "+experiment=derived_nano",
            f"{RUN} derived.models=[exports/mine]",
            f"{RUN} derived.models=[] derived.texts=[posts.jsonl]",
        ],
    ),
    "report": Help(
        "Write the report: page, figures and tables; print its first sentence.",
        [
            ("report.metrics=[NAME,...]", "further metrics, by their names in analysis/metrics"),
            ("report.prefix_tokens=N", "prompt length of verbatim extraction; report.suffix_tokens: length compared"),
            ("report.out=DIRECTORY", "write the report there; read access to the run is then enough"),
        ],
        [QUICK, f"{RUN} report.metrics=[min_k_logprob]", f"{RUN} report.out=mine"],
    ),
    "posttrain": Help(
        "Unlearn some of the inserted items, and compare with the twin that never saw them.",
        [
            ("posttrain=NAME", "the method: npo, simnpo, dpo, rmu, undial, ..., int4, prune, kfac, distill, retrain"),
            ("posttrain.after=RUN", "start from a post-trained run or leave_out, such as for posttrain=relearn"),
            ("posttrain.retain=X", "retain set: corpus, items or questions"),
            ("posttrain.forget.share=X", "share of each arm's and family's inserted items to forget; 1: all of them"),
            ("posttrain.steps=N", "steps of the method; posttrain.learning_rate=X: of AdamW, constant"),
            ("posttrain.rank=N", "train updates of rank N (LoRA) in place of all weights"),
            ("+posttrain.settings.KEY=X", "setting of the method: beta, ...; gamma, alpha: weights of the two losses"),
        ],
        [QUICK, f"{QUICK} posttrain=simnpo posttrain.steps=40", f"{RUN} posttrain.forget.share=1"],
    ),
    "export": Help(
        "Write a checkpoint for transformers, with tokenizer and model card.",
        [
            ("run=twin", "export the twin's checkpoint; run=npo, run=leave_out: of a post-trained run, or its twin"),
            ("step=S", "finished steps of the checkpoint, or all; default: the last checkpoint"),
        ],
        [QUICK, f"{RUN} step=all", f"{RUN} run=twin"],
    ),
    "write_corpus": Help(
        "Write the perturbed corpus as files, for other trainers.",
        [("format=jsonl", "one line per window, in training order; default: Megatron's token files")],
        [QUICK, RUN, f"{RUN} format=jsonl"],
    ),
    "export_items": Help(
        "Write a plan's items for other tools: lm-eval tasks, membership benchmarks, forget and retain sets.",
        [("seed=N", "seed of the run, and of the random forget set")],
        [QUICK, RUN, f"{QUICK} name=other"],
    ),
    "adaptive": Help(
        "Train in segments; after each, a policy decides the next exposures from the scores.",
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
        "Train experiments together in one run and each alone, and estimate their interaction.",
        [("insertion.experiments.NAME={...}", "an experiment with its own seed, windows and token budget")],
        [
            f"{QUICK} insertion=shared",
            f"{QUICK} insertion=shared train.steps=200",
            f"{QUICK} insertion=shared seed=2",
        ],
    ),
    "sweep": Help(
        "Make a run for every combination of the settings that have several values; run it again to continue.",
        [
            ("KEY=A,B,C", "a factor: its values are combined with those of all other factors"),
            ("launcher.jobs=K", "K runs at a time"),
            ("launcher=slurm", "submit SLURM arrays (conf/launcher/); launcher=report: only show progress and report"),
            ("launcher.nodes=N", "nodes per training; launcher.processes, gpus: per node; launcher.time: time limit"),
            ("dry_run=true", "print what would be made; with launcher=slurm also write the scripts"),
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
    run = "RUN is a run's directory, such as runs/quickstart/run-1a2b3c4d or, if unique, runs/quickstart."
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
            f"{EVERY} lists all settings, --cfg job prints their values.",
            "Status: 0 done, 1 a bug, 2 a mistake that you can correct, 3 the audit failed or a batch did not match",
            "the plan, 75 stopped by a signal after saving a checkpoint: run it again.",
            "",
        ]
    )
