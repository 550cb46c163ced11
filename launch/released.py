"""Score a released model: ``python launch/released.py MODEL ITEMS.jsonl DIRECTORY``.

MODEL is a directory, or a name on the hub, of a causal language model of ``transformers``; what a line of ITEMS may be,
``analysis.scoring.released.probes`` says. DIRECTORY gets ``probes.parquet`` and ``step_00000000/scores.parquet``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from palimpsest.data.errors import UserError
from palimpsest.launch.process import say
from palimpsest.launch.program import guarded, share_of


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; see launch/released.py --help")


def work() -> int:
    """Score what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = _refuse  # type: ignore[method-assign]
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("items", metavar="ITEMS.jsonl", type=Path)
    parser.add_argument("directory", metavar="DIRECTORY", type=Path)
    parser.add_argument("--shard", default="0/1", help="do share k of n, k/n; for an array of jobs")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--bos",
        default="always",
        help="prompts follow the beginning-of-text token: %(default)s; never; or auto: if the tokenizer adds it",
    )
    parser.add_argument(
        "--long-texts", default="refuse", help="beyond the table of positions: %(default)s or truncate"
    )
    parser.add_argument("--dtype", default=None, help="precision, such as bfloat16")
    parser.add_argument("--device-map", default=None, help="how modules are put on devices, such as auto")
    arguments = parser.parse_args()
    share = share_of(arguments.shard)

    import torch

    from palimpsest.analysis.scoring import released

    kind = arguments.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    done = released.score(
        arguments.model,
        arguments.items,
        arguments.directory,
        device=torch.device(kind),
        share=share,
        bos=arguments.bos,
        long_texts=arguments.long_texts,
        options={
            name: value
            for name, value in (("dtype", arguments.dtype), ("device_map", arguments.device_map))
            if value
        },
    )
    say(f"scores: {arguments.directory}" + ("" if done else " (all were there)"))
    return 0


def main() -> None:
    """Score; status 2 for what the user can mend."""
    guarded(work)


if __name__ == "__main__":
    main()
