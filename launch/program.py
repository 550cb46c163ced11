"""Command line of a program, and conversion of its errors to one line and an exit status."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from palimpsest.data.errors import UserError
from palimpsest.insertion.ledger import PlanViolation
from palimpsest.launch import help, recorded
from palimpsest.launch.compose import CONF, build, one_line, scaled
from palimpsest.launch.experiment import PAIR
from palimpsest.launch.process import INTEGRITY, end, say
from palimpsest.pretrain.interrupts import REQUEUE, Interrupted


class _DryRun(Protocol):
    @property
    def dry_run(self) -> bool:
        """True to print the preview only."""


Settings = TypeVar("Settings", bound=_DryRun)
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def program(
    main: Callable[[Settings], int | None],
    dry_run: Callable[[Settings], Iterable[str]] | None = None,
    *,
    kind: Callable[[DictConfig], Settings] = build,  # type: ignore[assignment]
    conf: Path = CONF,
    pair: bool = True,
) -> Callable[[], None]:
    """Program from a function, with Hydra's command line and an exit status. 0: success. 1: a bug (with a traceback).
    2: an error that the user can fix, in one line. 3: the experiment differs from its plan. 75: stopped by a signal
    after saving.

    Args:
        main: function that does the work.
        dry_run: function that returns the lines of a preview; without it ``dry_run=true`` is refused.
        kind: function that checks a composed configuration and returns the settings.
        conf: directory of the configuration.
        pair: true if ``run`` can only be one of the pair.
    """

    def start() -> None:
        composed: list[DictConfig] = []
        if (help_text := help.asked(sys.argv[1:])) is not None:
            _written(help_text)
            return
        sys.argv[1:] = ["--help" if text == help.EVERY else text for text in scaled(sys.argv[1:])]

        @hydra.main(version_base="1.3", config_path=str(conf), config_name="config")
        def compose(config: DictConfig) -> None:
            composed.append(config)  # the work is done outside, where Hydra adds nothing to errors

        def work() -> int:
            directory, overrides = recorded.split(sys.argv[1:])
            if directory is not None:
                if kind is not build:
                    raise UserError(f"this program takes settings, not the directory of a run ({directory})")
                return one(recorded.load(directory, overrides))  # type: ignore[arg-type]
            _compose(compose)
            return max((one(kind(config)) for config in composed), default=0)  # none after --help or --cfg

        def one(experiment: Settings) -> int:
            run = getattr(experiment, "run", PAIR[0])
            if pair and run not in PAIR:
                raise UserError(f"run={run}: here it is {' or '.join(PAIR)}; palimpsest export takes others")
            if not experiment.dry_run:
                if dry_run is not None and (line := _unsubmitted(experiment)):
                    raise UserError(line)
                return main(experiment) or 0
            if dry_run is None:
                raise UserError(
                    "dry_run=true does not work with this program; leave it out (run, sweep, prepare, plan, "
                    "train, audit, score, generate and report can)"
                )
            for line in dry_run(experiment):
                say(line)
            if line := _unsubmitted(experiment):
                say(f"to mend: {line}")
            return 0

        guarded(work, conf)

    return start


def _unsubmitted(settings: object) -> str:
    """Error text for a launcher of SLURM on the command line of a program that works on this machine."""
    typed = next((text for text in sys.argv[1:] if text.startswith("launcher=slurm")), None)
    if typed is None or not hasattr(settings, "launcher"):
        return ""
    return (
        f"{typed} submits nothing here: this program works on this machine; to submit, type `palimpsest sweep` with "
        "the same settings, also for a single run"
    )


def _written(text: str) -> None:
    """Write to standard output. A reader that closes the pipe early, such as ``head``, is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.exit(0)


def _compose(compose: Callable[[], None]) -> None:
    """Run Hydra and write its output."""
    try:
        compose()
        _written("")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (TypeError, ValueError, AttributeError) as error:  # of Hydra's own, for a group that is no name
        raise UserError(f"the command line cannot be read: {' '.join(str(error).split())[:200]}") from None


def guarded(work: Callable[[], int], conf: Path = CONF) -> NoReturn:
    """Run a program's work and exit with its status or with that of its error.

    Args:
        work: function that returns the status.
        conf: directory of the configuration, whose names are suggested in error messages.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s", stream=sys.stderr
    )
    logging.getLogger("megatron").setLevel(logging.CRITICAL)  # what matters is raised, too
    warnings.filterwarnings("ignore", module=r"(megatron|torch|hydra)")
    status = 0
    try:
        status = work()
    except Interrupted as error:
        end(str(error), REQUEUE, rank)
    except PlanViolation as error:
        end(str(error), INTEGRITY, 0)  # whichever rank saw it says so
    except (UserError, HydraException, OmegaConfBaseException) as error:
        line = str(error) if isinstance(error, UserError) else one_line(error, conf)
        end(line, 2, rank)
    except OSError as error:
        if error.errno in _FULL_DISK:
            end(
                f"the disk is full ({error}); what was finished before is intact: free space, run again",
                2,
                rank,
            )
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            end(f"no permission to write: {error}", 2, rank)
        raise
    except KeyboardInterrupt:
        end("interrupted; run the same command again to go on", 130, rank)
    sys.exit(status)


def plain(description: str | None, work: Callable[[Sequence[str]], int]) -> None:
    """Run a program that has no configuration: ``--help`` prints its description, any other command line runs
    :func:`guarded` work.

    Args:
        description: docstring of the program.
        work: function from the command-line arguments to the exit status.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        sys.stdout.write(f"{(description or '').replace('``', '')}\n")
        return
    guarded(lambda: work(sys.argv[1:]))


def take(first: str, *others: str, word: bool = False) -> dict[str, str]:
    """Remove a program's own settings from the command line, because Hydra would refuse them.

    Args:
        first: name of the main setting; without it nothing is removed.
        others: names of the settings that belong to it.
        word: true if the first is a word instead of ``first=value``.

    Returns:
        Setting -> value as typed, the last one if there are several; "" for a word.
    """
    taken: dict[str, str] = {}
    left = sys.argv[:1]
    for argument in sys.argv[1:]:
        key, equals, value = argument.partition("=")
        if (key == first and bool(equals) != word) or (key in others and equals):
            taken[key] = value
        else:
            left.append(argument)
    if first not in taken:
        return {}
    sys.argv[:] = left
    return taken


def share_of(text: str) -> tuple[int, int]:
    """The two numbers of ``k/n``.

    Raises:
        UserError: unless it is one of ``0/n``, ..., ``n-1/n``.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise UserError(f"shard={text!r} is not k/n; give shard=0/8, shard=1/8, ... shard=7/8")
    return int(match[1]), int(match[2])
