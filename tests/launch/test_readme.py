"""What the README says to type can be typed: all of it is composed, and each line of its code blocks is run."""

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from importlib.util import find_spec

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from palimpsest.data.sources import SourceConfig, read
from palimpsest.launch.compose import CONF, build
from palimpsest.launch.sweep import expand
from tests.browser import FLAGS, faults, opened
from tests.conftest import REPO, Workplace

README = (REPO / "README.md").read_text()


def table():
    """Each command of the table of "Change it": the code of its last column."""
    section = README.split("## Change it")[1].split("\n## ")[0].split("| family |")[0]
    for row in re.findall(r"^\| .* \| (`.*`) \|$", section, re.MULTILINE):
        yield from re.findall(r"`([^`]*)`", row)


def blocks():
    """(language, text) of each code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(block):
    """Each command of a block of the shell, as it is typed, with its comment."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def inline():
    """The commands that stand in the text, not those that leave something out."""
    text = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL).replace("\n", " ")
    found = re.findall(r"`((?:eval|python|torchrun) [^`]*)`", text)
    return [command for command in found if "..." not in command]


def programs():
    """The arguments of each command line in a code block that starts a program with an experiment."""
    for language, block in blocks():
        for line in commands(block) if not language else []:
            if "+experiment=" in line:
                yield line.split("  # ")[0].split(" # ")[0].strip()


def experiment(words):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("config", words))


def test_the_table_is_found():
    assert len(list(table())) > 15
    assert len(list(programs())) > 12


@pytest.mark.parametrize("command", list(table()))
def test_change(command):
    experiment(["+experiment=quickstart", *shlex.split(command)])


@pytest.mark.parametrize("line", list(programs()))
def test_program(line):
    words = shlex.split(line)
    program = next(k for k, word in enumerate(words) if word.startswith("launch/"))
    assert (REPO / words[program]).is_file()
    given = [word for word in words[program + 1 :] if word != "show"]
    given = [
        w for w in given if w.split("=")[0] not in ("item", "step", "checkpoint", "ledger", "power", "effect")
    ]
    for arguments, _ in expand(given):  # a sweep has several
        made = experiment(list(arguments))
    if "torchrun" in words:
        ranks = int(words[words.index("--nproc-per-node") + 1])
        made.parallel.check(ranks, made.model, made.train)


FEW = "corpus.tokenizer.vocab_size=1024"
TINY = [FEW, "model.layers=2", "model.hidden=32", "model.heads=4", "model.ffn=64"]
LESS = [
    *(FEW, "corpus.source.packages=false", "corpus.heldout_fraction=0.05"),
    *("insertion.items_per_dose=2", "insertion.max_share=0.9"),
]
SHORT = [*TINY, *LESS, "train.steps=100"]
SWEPT = [*LESS, "train.steps=1", "optimizer.warmup_steps=0", "insertion.doses=[0,1]"]
SCALES = {
    "launcher=slurm": [*SWEPT, "name=cluster"],
    "/sweep.py": SWEPT,
    "my.jsonl": TINY,
    "insertion=shared": [
        *(*TINY, *LESS, "train.steps=40"),
        *(f"insertion.experiments.{name}.doses=[0,1,4]" for name in ("sentences", "people")),
        *(f"insertion.experiments.{name}.items_per_dose=2" for name in ("sentences", "people")),
        *(f"insertion.experiments.{name}.max_share=0.9" for name in ("sentences", "people")),
    ],
    "torchrun": [*TINY, *LESS, "train.steps=10", "optimizer.warmup_steps=3", "insertion.doses=[0,1]"],
    "launch/adaptive.py": [*TINY, *LESS, "train.steps=210"],
    "power=true": [],
    "-sc": [],
    "+experiment=": SHORT,
}
"""What a line has in it -> what is added to it, lest it takes minutes: the first that fits. Steps, checkpoints and
items that the README names are still there. A sweep's models keep their sizes."""
STAND_IN = """#!/bin/sh
# For a cluster, which a test of the README has not: takes any script that bash can read. tests/slurm has a real one.
for script; do :; done
bash -n "$script" && echo "$$"
"""


class Reader:
    """Types commands, each program as ``Workplace`` runs it."""

    def __init__(self, path):
        self.path, self.place = path, Workplace(path)
        (path / "launch").symlink_to(REPO / "launch")
        (path / "tools").mkdir()
        for name, text in (("sbatch", STAND_IN), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
            (path / "tools" / name).write_text(text)
            (path / "tools" / name).chmod(0o755)
        self.environment = {"PATH": f"{path / 'tools'}{os.pathsep}{os.environ['PATH']}"}

    def types(self, line):
        """What a line says when it is typed; it must succeed."""
        words = shlex.split(line, comments=True)
        added = next((scale for part, scale in SCALES.items() if part in line), [])
        if words[0] == "make":  # the gate does that; typed from a test it would not end
            return self.shell(f"make -C {REPO} -n {words[1]}")
        if words[0] == "torchrun":
            assert words[1:4] == ["--nproc-per-node", "2", "launch/train.py"]
            self.place.ok("plan", *words[4:], *added)  # "Plan first, with the same overrides"
            return self.place.ok("train", *words[4:], *added, ranks=2, timeout=900).out
        if words[0] == "python":
            program = words[1].removeprefix("launch/").removesuffix(".py")
            cluster = {"env": self.environment} if program == "sweep" else {}
            return self.place.ok(program, *words[2:], *added, timeout=900, **cluster).out
        return self.shell(line)

    def shell(self, line):
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.path,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


def watched(reader, line):
    """What the page says whose address the command tells; Ctrl-C ends it."""
    process = subprocess.Popen(
        [*(sys.executable, *shlex.split(line)[1:]), "port=0"],
        cwd=reader.path,
        stderr=subprocess.PIPE,
        text=True,
    )
    address = re.search(r"http://\S+", process.stderr.readline())[0]
    with urllib.request.urlopen(f"{address}/data.json", timeout=30) as answer:
        found = json.load(answer)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0
    return found


def browsed(report):
    """Complaints, other requests and faults of the quickstart's report in a browser, where there is one."""
    if shutil.which("chromium") is None or find_spec("playwright") is None:
        return []
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        shown = opened(chromium, report)
        wrong = [*shown.complaints, *shown.requests[1:], *faults(shown.page)]
        assert shown.page.locator("figure svg").count() >= 8
        shown.page.fill("#items-search", "ghost-00003")
        assert shown.page.inner_text("#item-title") == "ghost-00003"
        chromium.close()
    return wrong


@pytest.mark.long
def test_everything_is_typed(tmp_path, monkeypatch):
    """As a reader would: a run, what looks at that run, each command from top to bottom, then those in the text."""
    monkeypatch.chdir(tmp_path)
    english = read(SourceConfig(kind="installed_docs", min_words=20))
    with (tmp_path / "my.jsonl").open("w") as file:
        for document in itertools.islice(english, 6000):
            file.write(json.dumps({"text": document.text}) + "\n")
    for name, texts in (("privacy_dup", ["One."]), ("testset_dup", ["Two.", "Two."]), ("others", ["Three."])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    placed = (("privacy_dup", 0), ("testset_dup", 0), ("testset_dup", 1))
    (tmp_path / "info.json").write_text(
        "".join(
            json.dumps(
                {"perturbation_file": f"{name}_text_document", "perturbation_idx": row, "pt_loc": 7 * k}
            )
            + "\n"
            for k, (name, row) in enumerate(placed)
        )
    )
    reader, said, quick = Reader(tmp_path), {}, "+experiment=quickstart"
    lines = [line for language, block in blocks() if not language for line in commands(block)]  # no set-up
    lines = [line for line in lines if not re.match(r"\w+/ ", line)]  # the list of directories
    whole = next(line for line in lines if "launch/run.py" in line)
    assert "audit: PASS" in reader.types(whole)
    for language, block in blocks():
        if language == "python":
            exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "fig1.pdf").read_bytes().startswith(b"%PDF")
    assert "tabular" in (tmp_path / "tab1.tex").read_text()
    (watching,) = (line for line in inline() if "launch/watch.py" in line)
    assert watched(reader, watching)["state"] == "finished"
    (report,) = tmp_path.glob("runs/quickstart/run-*/report/report.html")
    assert browsed(report) == []
    shutil.rmtree(report.parent.parent)
    for line in lines:
        if line != whole:  # stage by stage
            said[line] = reader.types(line)
    told = {" ".join(shlex.split(line, comments=True)[1:]): out for line, out in said.items()}
    assert "launch/run.py +experiment=quickstart" in told["demo"]
    assert "pytest -m 'not slow and not long'" in told["test"]
    assert "audit: PASS" in told[f"launch/audit.py {quick}"]
    assert "ghost-00003" in told[f"launch/plan.py show {quick} item=ghost-00003 checkpoint=90"]
    assert told[f"launch/plan.py show {quick} step=7"].count("step 7, row ") == 8
    assert "effect of 0.3 takes" in told[f"launch/plan.py power=true {quick} effect=0.3"]
    assert list(tmp_path.glob("runs/quickstart/run-*/perturbed/export/step_00000100/model.safetensors"))
    assert len(list(tmp_path.glob("runs/quickstart/*/report/report.html"))) >= 6  # of the sweep
    (slurm,) = (out for line, out in told.items() if "launcher=slurm" in line)
    assert re.search(r"submitted: prepare \d+, plan \d+, train-perturbed \d+", slurm)
    assert told["launch/runs.py"].count("quickstart/run-") >= 7
    (own,) = (out for line, out in told.items() if "my.jsonl" in line)
    assert "audit: PASS" in own

    (tmp_path / "items.jsonl").write_text('{"text": "the cat sat on the mat"}\n')
    (model,) = tmp_path.glob("runs/quickstart/run-*/perturbed/export/step_*")
    for line in inline():
        if line != watching:
            line = line.replace("MODEL", str(model)).replace("NAME", "canaries").replace("DIRECTORY", "drawn")
            said[line] = reader.types(f"{line}; complete -p" if line.startswith("eval") else line)
    assert (tmp_path / "scores" / "step_00000000" / "scores.parquet").is_file()
    assert "01_dose_response.svg" in (tmp_path / "drawn" / "README.md").read_text()
    (shown,) = (out for line, out in said.items() if "family=canaries" in line)
    assert shown.count("\ncanary-") + shown.startswith("canary-") == 5
    (completion,) = (out for line, out in said.items() if line.startswith("eval"))
    assert "hydra_bash_completion" in completion
