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
        "`torchrun --nproc-per-node N -m palimpsest.launch.train ...`. `--help` of a program says what is below;",
        "`--help-all` lists every setting; `--cfg job` prints the configuration that the others resolve to.",
        "",
        "Programs of an experiment take `+experiment=NAME` (a file of `conf/experiment/`) or the directory of a run,",
        "whose settings they then have. Either may be followed by any setting ([all of them](settings.md)).",
        "`--config-dir=DIRECTORY` adds files of your own to those of `conf/`.",
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
            "report it; of torchrun, " + LINE,
        ],
        [
            "2",
            "a mistake that you can mend: a setting, a file, the disk",
            "read the line: setting, value and fix",
        ],
        [
            str(INTEGRITY),
            "the audit failed, or a batch was not what the plan says",
            "find out why before you use the run",
        ],
        [
            str(REQUEUE),
            "told to stop by SIGTERM or SIGUSR1; a checkpoint is saved",
            "type the same command again",
        ],
        ["130", "interrupted by Ctrl-C", "type the same command again"],
    ]
    return "\n".join(
        [
            "# Exit statuses",
            "",
            "Every program ends with one clear line and one of these:",
            "",
            *table(["status", "meaning", "what to do"], rows),
            "",
            "With status 3 the line names item, step, rank and row, and no step was taken with that batch.",
            "",
            "`palimpsest run` ends with the status of the stage that failed, also where it starts torchrun. A job of",
            "`palimpsest sweep` on SLURM puts itself back into the queue after status 75, a signal or a crash, and",
            "never after 2 or 3.",
            "",
        ]
    )
