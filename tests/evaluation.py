"""The program ``lm_eval`` on an exported checkpoint."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest


def lm_eval(export, tasks, include, out, *, options="", samples=False, environment=None):
    """Run tasks of the directory ``include`` on an export; ``out`` gets results, and samples where they are asked for.

    ``export`` is a directory, or a repository's name where ``environment`` says in which cache it lies.

    Skips the test where lm_eval or what it needs is not installed.
    """
    for name in ("lm_eval", "accelerate", "transformers"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install -e '.[lm_eval]'")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu"),
            *("--model_args", f"pretrained={export},dtype=float32{options}"),
            *("--tasks", ",".join(tasks), "--include_path", str(include), "--output_path", str(out)),
            *(["--log_samples"] if samples else []),
        ],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HOME": str(out / "home"),
            **(environment or {}),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
