"""Fixtures shared by all tests: a small corpus and a plan over it, made once."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings

from palimpsest.data import megatron_core
from tests import warm
from tests.browser import FLAGS

megatron_core.make_importable()  # some tests import it before anything of this package
REPO = Path(__file__).resolve().parent.parent

# The same examples every time, and no time limit, which a busy machine would exceed: what fails here fails everywhere.
# HYPOTHESIS_PROFILE=default draws others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


LONG = ("test_typed", "test_slurm", "test_topologies", "test_experiments", "test_misuse", "test_report")
"""Files that take longest, lest one worker runs them at the end and the others wait."""


def pytest_collection_modifyitems(config, items):
    if share := os.environ.get("SHARD"):  # k/n: every n-th of the long tests, from k on
        number, of = map(int, share.split("/"))
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = long[number::of]
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@dataclass(frozen=True)
class Finished:
    """A program that ended."""

    status: int
    out: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.out.splitlines() if line.strip()]


@contextmanager
def one_on_the_gpu():
    """Hold the GPU: programs of other workers of pytest that want it wait."""
    with Path(tempfile.gettempdir(), "palimpsest-tests-gpu.lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Workplace:
    """A directory with a small text, and the programs of ``launch/`` run in it as a person runs them."""

    path: Path
    overrides: list[str] = field(default_factory=list)
    warm: bool = True
    """Whether programs run in forks of a process that has imported torch (``tests.warm``), where that can be."""

    def command(self, program: str, *overrides: str, ranks: int = 1) -> list[str]:
        start = [sys.executable]
        if ranks > 1:
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        return [*start, str(REPO / "launch" / f"{program}.py"), *self.overrides, *overrides]

    def _fresh(self, overrides: tuple[str, ...]) -> bool:
        """Start the program anew: what has imported megatron-core is unfit for CUDA once it forks."""
        return not self.warm or self._on_gpu(overrides)

    def _on_gpu(self, overrides: tuple[str, ...]) -> bool:
        return "runtime.device=cuda" in (*self.overrides, *overrides)

    def run(self, program: str, *overrides: str, ranks: int = 1, timeout: int = 240, **options) -> Finished:
        if not self._fresh(overrides) and ranks == 1 and options.keys() <= {"env"}:
            arguments = self.command(program, *overrides)[1:]
            return Finished(*warm.run(arguments, self.path, timeout=timeout, **options.get("env", {})))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        with one_on_the_gpu() if self._on_gpu(overrides) else nullcontext():
            done = subprocess.run(
                self.command(program, *overrides, ranks=ranks),
                cwd=self.path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
                **options,
            )
        return Finished(done.returncode, done.stdout)

    def ok(self, program: str, *overrides: str, ranks: int = 1, **options) -> Finished:
        """Run a program that must succeed; ranks without other ``options`` are forks, too, and no torchrun's."""
        if not self._fresh(overrides) and ranks > 1 and not options:
            arguments = self.command(program, *overrides)[1:]
            done = Finished(*warm.run(arguments, self.path, ranks=ranks))
        else:
            done = self.run(program, *overrides, ranks=ranks, **options)
        assert done.status == 0, done.out
        return done

    def directory(self, name: str = "run") -> Path:
        found = [p for p in (self.path / "runs" / "small").glob(f"{name}-{'[0-9a-f]' * 8}") if p.is_dir()]
        assert len(found) == 1, found
        return found[0]

    def corpus(self, name: str = "run") -> Path:
        """The corpus that a run's plan was made for; other tests may have made more."""
        wanted = json.loads((self.directory(name) / "plan" / "manifest.json").read_text())["inputs"]["corpus"]
        manifests = (self.path / "runs" / "corpora").glob("*/manifest.json")
        (found,) = (path.parent for path in manifests if json.loads(path.read_text())["digest"] == wanted)
        return found


NOUNS = (
    "parser reader writer buffer module object method value string number index table window stream socket "
    "thread process signal handler record field schema column digest corpus token family probe policy ledger"
).split()


def write_text(path: Path, documents: int = 1500) -> None:
    """A small, varied, deterministic text: JSONL with a ``text`` field."""
    import numpy as np

    rng = np.random.default_rng(7)
    with path.open("w") as file:
        for _ in range(documents):
            sentences = (
                f"The {' '.join(rng.choice(NOUNS, rng.integers(4, 14)))}." for _ in range(rng.integers(3, 25))
            )
            file.write(json.dumps({"text": " ".join(sentences)}) + "\n")


SMALL = [f"--config-dir={REPO / 'tests' / 'conf'}", "+experiment=small"]


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Workplace:
    """A workplace whose corpus and plan are made, to be copied."""
    place = Workplace(tmp_path_factory.mktemp("pristine"), SMALL)
    write_text(place.path / "text.jsonl")
    place.ok("prepare")
    place.ok("plan")
    return place


def copied(pristine: Workplace, factory) -> Workplace:
    place = Workplace(factory.mktemp("workplace"), SMALL)
    shutil.copytree(pristine.path, place.path, dirs_exist_ok=True)
    return place


@pytest.fixture(scope="module")
def prepared(pristine, tmp_path_factory) -> Workplace:
    """A workplace whose corpus and plan are made; no other file of tests runs anything in it."""
    return copied(pristine, tmp_path_factory)


WHOLE = [
    "name=finished",
    "train.steps=40",
    "train.sequence_length=160",
    "optimizer.learning_rate=5e-3",
    "+insertion.families.biographies={attributes: [birth_date, field]}",
    "insertion.doses=[0,1,4,16]",
    "insertion.max_share=0.5",
]
"""Overrides of :func:`finished`: on every program that is run on it."""


@pytest.fixture(scope="session")
def finished(pristine, tmp_path_factory) -> Path:
    """The directory of a run that went through all stages: three families, four doses, twin, audit, scores, report."""
    place = copied(pristine, tmp_path_factory)
    place.ok("run", *WHOLE)
    return place.directory("finished")


@pytest.fixture(scope="session")
def chromium():
    """A browser; tests that need one are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()
