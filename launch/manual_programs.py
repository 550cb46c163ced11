"""The reference pages of the programs and of their exit statuses."""

from __future__ import annotations

import re
from importlib import import_module

from palimpsest.launch import cli, help
from palimpsest.launch.manual_text import body, table
from palimpsest.launch.process import INTEGRITY
from palimpsest.pretrain.interrupts import REQUEUE

LINE = "read the rank's line above it"


def programs() -> str:
    """The page of programs."""
    rows = [[f"[`{name}`](#{name})", meaning] for name, meaning in cli.PROGRAMS.items()]
    lines = [
        "# Programs",
        "",
        "`palimpsest PROGRAM SETTING=VALUE ...`; in a checkout also `python launch/PROGRAM.py ...`. Several processes:",
        "`torchrun --nproc-per-node N -m palimpsest.launch.train ...`. `--help` of a program prints what is below,",
        "`--help-all` lists every setting, and `--cfg job` prints the resulting configuration.",
        "",
        "Programs of an experiment take `+experiment=NAME` (a file of `conf/experiment/`) or the directory of a run,",
        "whose settings are then used. Either can be followed by any setting ([all of them](settings.md)).",
        "`--config-dir=DIRECTORY` adds your own files to those of `conf/`.",
        "",
        *table(["program", "what it does"], rows),
    ]
    for name in cli.PROGRAMS:
        lines += ["", f"## {name}", ""]
        if name in help.PROGRAMS:
            entry = help.PROGRAMS[name]
            lines += [entry.purpose, ""]
            lines += table(
                ["own setting", "meaning"], [[f"`{key}`", _capital(text)] for key, text in entry.settings]
            )
            lines += ["", "```text", *(f"palimpsest {name} {example}" for example in entry.examples), "```"]
        else:
            said = body(import_module(f"palimpsest.launch.{name}").__doc__)
            lines += [re.sub(r"python launch/(\w+)\.py", r"palimpsest \1", said)]
    return "\n".join(lines) + "\n"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def statuses() -> str:
    """The page of exit statuses."""
    rows = [
        ["0", "done", "nothing"],
        [
            "1",
            "a bug, with a traceback; or torchrun itself, whatever the rank's status",
            "report it; with torchrun, " + LINE,
        ],
        [
            "2",
            "a mistake that you can correct: a setting, a file, the disk",
            "read the message, which names the setting, its value and the fix",
        ],
        [
            str(INTEGRITY),
            "the audit failed, or a batch did not match the plan",
            "find out why before you use the run",
        ],
        [
            str(REQUEUE),
            "stopped by SIGTERM or SIGUSR1; a checkpoint is saved",
            "type the same command again",
        ],
        ["130", "interrupted by Ctrl-C", "type the same command again"],
    ]
    return "\n".join(
        [
            "# Exit statuses",
            "",
            "Every program ends with a one-line message and one of these statuses:",
            "",
            *table(["status", "meaning", "what to do"], rows),
            "",
            "If a batch did not match the plan, the message names item, step, rank and row, and no step was taken with",
            "that batch.",
            "",
            "`palimpsest run` ends with the status of the stage that failed, also if it starts torchrun. A job of",
            "`palimpsest sweep` on SLURM requeues itself after status 75, a signal or a crash, and never after 2 or 3.",
            "",
        ]
    )
