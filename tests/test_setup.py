"""``make setup``: uv or pip, the Pythons that are supported, and a torch with CUDA that is there already."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPO

PYTHON = """#!/bin/bash
# A Python that makes environments without filling them, and notes what would be installed.
case "$*" in
  "-m venv "*) dir="${@: -1}"; mkdir -p "$dir/bin"; cp "$0" "$dir/bin/python"; echo "venv $*" >> LOG ;;
  "-m pip config"*) echo WHEELS ;;
  "-m pip install"* | "-m ipykernel"*) echo "$*" >> LOG ;;
  *) exec REAL -S "$@" ;;  # without the packages beside it
esac
"""
UV = """#!/bin/bash
[ "$1" = --version ] && exit 0
echo "uv $*" >> LOG
if [ "$1" = venv ]; then dir="${@: -1}"; mkdir -p "$dir/bin"; cp BIN/python3 "$dir/bin/python"; fi
"""


@pytest.fixture
def place(tmp_path):
    """A checkout's files for the set-up, and a PATH with stand-ins that note what they are asked for."""
    for name in (".ci/setup", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPO / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    write(tmp_path, "python3", PYTHON)
    return tmp_path


def write(place, name, text):
    for word, value in (
        ("LOG", place / "log"),
        ("REAL", sys.executable),
        ("WHEELS", "/wheels"),
        ("BIN", place / "bin"),
    ):
        text = text.replace(word, str(value))
    (place / "bin" / name).write_text(text)
    (place / "bin" / name).chmod(0o755)


def torch(place, version, cuda):
    """A torch that is there already."""
    (place / "site" / "torch").mkdir(parents=True)
    (place / "site" / "torch" / "__init__.py").write_text(f"class version: cuda = {cuda!r}\n")
    for name, its in (("torch", version), ("transformer_engine", "2.9.0")):
        info = place / "site" / f"{name}-{its}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {its}\n"
        )


def setup(place, *python, status=0, links=None):
    environment = os.environ | {
        "PATH": f"{place / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(place / "site"),
        "PIP_FIND_LINKS": links or "",
    }
    done = subprocess.run(
        [str(place / ".ci" / "setup"), ".venv", *(python or ["python3"])],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    log = (place / "log").read_text().splitlines() if (place / "log").exists() else []
    return log, done.stdout + done.stderr


def test_pip_installs_torch_first_and_by_version(place):
    log, out = setup(place)
    assert "with pip" in out
    installed = [line for line in log if "pip install" in line]
    assert [line.split()[-1] for line in installed] == ["torch==2.13.0", ".[docs,test]"]
    assert all("-c constraints.txt" in line for line in installed)
    assert "ipykernel install --sys-prefix" in log[-1]


@pytest.mark.parametrize("links", [None, "/one /two"])
def test_uv_where_it_is_with_the_wheels_that_pip_would_look_at(place, links):
    write(place, "uv", UV)
    log, out = setup(place, links=links)
    assert "with uv" in out
    assert not any("-m pip install" in line for line in log)
    installed = [line for line in log if line.startswith("uv pip install")]
    assert [line.split()[-1] for line in installed] == ["torch==2.13.0", ".[docs,test]"]
    for link in (links or "/wheels").split():
        assert all(f"--find-links {link}" in line for line in installed)


def test_a_torch_with_cuda_is_used_and_not_replaced(place):
    write(place, "uv", UV)  # does not see packages outside its environment
    torch(place, "2.12.0a0+nv25.12", cuda="13.0")
    log, out = setup(place)
    assert "used as they are: torch==2.12.0a0+nv25.12 transformer-engine==2.9.0" in out
    assert "--system-site-packages" in log[0]
    (installed,) = (line for line in log if "pip install" in line)
    assert "torch==" not in installed
    assert "-c .venv/constraints.txt" in installed
    constraints = (place / ".venv" / "constraints.txt").read_text().splitlines()
    assert [
        line for line in constraints if line.startswith(("torch==", "triton", "nvidia", "transformer-"))
    ] == [
        "torch==2.12.0a0+nv25.12",
        "transformer-engine==2.9.0",
    ]


def test_an_environment_keeps_its_python(place):
    """As when the packages' versions have changed since ``make setup PYTHON=python3.13``."""
    write(place, "python3.13", PYTHON.replace("venv $*", "3.13's venv $*"))
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "bin" / "python").symlink_to(place / "bin" / "python3.13")
    log, _ = setup(place, "")
    assert log[0].startswith("3.13's venv")


def test_a_torch_without_cuda_is_none_to_keep(place):
    torch(place, "2.12.0", cuda=None)
    log, _ = setup(place)
    assert "--system-site-packages" not in log[0]
    assert any(line.endswith("torch==2.13.0") for line in log)


def test_another_python_is_refused_in_a_line(place):
    write(place, "python3", '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.4 && exit 0\nexit 1\n')
    log, out = setup(place, status=2)
    assert out == "palimpsest: Python 3.10.4 is not supported; use Python 3.11, 3.12 or 3.13\n"
    assert log == []
