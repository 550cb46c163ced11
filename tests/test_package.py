"""One import name: folders called analysis/, data/ ... of one's own are not in the way, and a wheel is enough."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPO, SMALL

FOLDERS = ("analysis", "data", "insertion", "pretrain", "launch", "conf", "metrics")
PALIMPSEST = [sys.executable, "-c", "from palimpsest.launch.cli import main; main()"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]


def foreign(path):
    """A user's directory, whose own packages are called as our folders are."""
    for name in FOLDERS:
        (path / name).mkdir(parents=True)
        for file in ("__init__.py", "errors.py", "config.py", "run.py", "plan.py"):
            (path / name / file).write_text("raise RuntimeError('this is the user\\'s own file')\n")
    return path


def run(command, directory, *, tree=REPO, status=0):
    """Run a command in a directory, with the user's directory and then a tree of ours on the path."""
    environment = os.environ | {"PYTHONPATH": f"{directory}:{tree}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def test_a_run_is_opened_beside_folders_of_the_same_names(finished, tmp_path):
    directory = foreign(tmp_path / "mine")
    code = f"import palimpsest; print(palimpsest.open_run({str(finished)!r}).name)"
    assert finished.name in run([sys.executable, "-c", code], directory)


def test_the_programs_run_beside_folders_of_the_same_names(tmp_path):
    directory = foreign(tmp_path / "mine")
    before = sorted(directory.rglob("*"))
    out = run([*PALIMPSEST, "run", "+experiment=quickstart", "dry_run=true"], directory)
    assert "train perturbed  make runs/quickstart/run-" in out
    out = run(
        [sys.executable, str(REPO / "launch" / "run.py"), "+experiment=quickstart", "dry_run=true"], directory
    )
    assert "train perturbed  make runs/quickstart/run-" in out
    assert [path for path in sorted(directory.rglob("*")) if "__pycache__" not in str(path)] == before


@pytest.mark.slow
def test_torchrun_trains_beside_folders_of_the_same_names(prepared, tmp_path):
    directory = foreign(tmp_path / "mine")
    shutil.copytree(prepared.path / "runs", directory / "runs")
    shutil.copy(prepared.path / "text.jsonl", directory)
    run([*TORCHRUN, str(REPO / "launch" / "train.py"), *SMALL], directory)
    assert list(directory.glob("runs/small/run-*/perturbed/checkpoints/step_00000020/manifest.json"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A directory with the built wheel's contents, as an installation without the checkout has them."""
    place = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "-C", str(REPO), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("the tree is no git checkout, whose files would be listed")
    for name in filter(None, listed.stdout.split("\0")):
        source, target = REPO / name, place / "tree" / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target, follow_symlinks=False)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
            *("--wheel-dir", str(place / "dist"), str(place / "tree")),
        ],
        check=True,
        capture_output=True,
    )
    (built,) = (place / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(place / "site")
    shutil.rmtree(place / "tree")
    return place / "site"


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_packages(wheel):
    tracked = subprocess.run(
        ["git", "-C", str(REPO), "ls-files", *FOLDERS[:6]], capture_output=True, text=True, check=True
    ).stdout.split()
    there = [name for name in tracked if "/notebooks/" not in name and (REPO / name).is_file()]
    assert len(there) > 200
    assert [name for name in there if not (wheel / "palimpsest" / name).is_file()] == []


@pytest.mark.slow
def test_a_wheel_is_enough_for_a_whole_run(wheel, tmp_path):
    """Every stage, started by the one name; then in a notebook. No file of the checkout is imported."""
    directory = foreign(tmp_path / "mine")
    tiny = [
        "train.steps=8",
        "optimizer.warmup_steps=2",
        "train.checkpoint_every=8",
        "insertion.doses=[0,1,2]",
        "insertion.max_share=0.9",
    ]
    small = [
        "insertion.families.ghost_sentences.list_size=0",
        "insertion.items_per_dose=2",
        "train.sequence_length=128",
        "model.layers=1",
        "corpus.source.packages=false",
    ]
    out = run(
        [*PALIMPSEST, "run", "+experiment=quickstart", "runtime.device=cpu", *tiny, *small],
        directory,
        tree=wheel,
    )
    assert "audit: PASS" in out
    (place,) = (directory / "runs" / "quickstart").iterdir()
    code = (
        f"import palimpsest, palimpsest.launch.run, sys; print(palimpsest.open_run({str(place)!r}).name); "
        "assert all(str(module.__file__).startswith(sys.argv[1]) for name, module in list(sys.modules.items()) "
        "if name.startswith('palimpsest.') and getattr(module, '__file__', None))"
    )
    assert place.name in run([sys.executable, "-c", code, str(wheel)], directory, tree=wheel)


def test_a_tree_that_is_not_installed_makes_artefacts(tmp_path):
    """Where importlib.metadata knows no palimpsest, manifests say so instead of failing."""
    code = (
        "from importlib import metadata\n"
        "def version(name, real=metadata.version):\n"
        "    if name == 'palimpsest': raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.version = version\n"
        "from pathlib import Path\n"
        "from palimpsest.data import artifact\n"
        "with artifact.writing(Path('made'), kind='plan', schema_version=1, config={}, inputs={}): pass\n"
        "print(artifact.read(Path('made'), kind='plan', schema_version=1).made_by['palimpsest'])\n"
    )
    assert run([sys.executable, "-c", code], tmp_path).split() == ["None"]


def test_an_unknown_program_names_the_nearest(tmp_path):
    out = run([*PALIMPSEST, "trian", "+experiment=quickstart"], tmp_path, status=2)
    assert out == "palimpsest: trian: there is no such program; did you mean 'train'?\n"
    listed = run([*PALIMPSEST, "--help"], tmp_path)
    programs = {path.stem for path in Path(REPO, "launch").glob("*.py") if "__main__" in path.read_text()}
    assert programs <= {line.split()[0] for line in listed.splitlines() if line.startswith("  ")}
