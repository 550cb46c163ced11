"""A seeded fuzzer: damaged items files, corpora, tokenizers, plans, ledgers, checkpoints, manifests and overrides.

Every case ends well or in a ``UserError`` within a minute; an escape (any other exception, or more time) is a bug, and
so is a half-written artefact.
``python -m tests.fuzz CASES [SEED]`` runs many and prints each escape with the seed that gives it again;
``tests/test_fuzz.py`` runs a sample.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch.distributed import checkpoint as plain

from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.data.prepare import CorpusConfig, prepare
from palimpsest.data.sources import SourceConfig
from palimpsest.data.tokenizer import TokenizerConfig, load, train
from palimpsest.insertion import explain, ledger, plan
from palimpsest.insertion.families.registry import FamilyContext, make
from palimpsest.insertion.items import tokenize_items, tokenize_probes
from palimpsest.pretrain import checkpoint, saved
from tests.insertion.simulation import BATCH, STEPS, consume, simulated

CONF = Path(__file__).resolve().parent.parent / "conf"
HOSTILE = (
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xff", b"\r", b"\n", b"\xe2\x80\xa8", b'"', b"\\", b"{", b"]"),
    *(b'"\\ud800"', b"NaN", b"Infinity", b"1e999", b"-1", b"99999999999999999999999", b"null", b"[]", b"{}"),
    *(b"true", b'""', b"\\u0000", b"<|endoftext|>", "\u202e\U0001f600".encode(), b"[" * 5000),
)
VALUES = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        7,
        2**31,
        2**31 - 1,
        2**63,
        -(2**63),
        10**30,
        0.5,
        1e308,
        "",
        "a",
        " ",
        "\x00",
    ),
    *("\ud800", "<|endoftext|>", "é" * 50, [], {}, [None], [[]], {"": None}, {"a": {"b": 1}}, [1, 2, 3]),
)


def bytes_damaged(rng: random.Random, data: bytes) -> bytes:
    """A copy with a few random edits."""
    edited = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        place = rng.randrange(len(edited) + 1)
        length = rng.choice((1, 1, 4, 50, 1000))
        way = rng.randrange(6)
        if way == 0 and place < len(edited):
            edited[place] ^= 1 << rng.randrange(8)
        elif way == 1:
            del edited[place : place + length]
        elif way == 2:
            del edited[place:]
        elif way == 3:
            edited[place:place] = edited[place : place + length]
        elif way == 4:
            edited[place:place] = rng.choice(HOSTILE)
        else:
            edited[place : place + length] = rng.randbytes(length)
    return bytes(edited)


def value_damaged(rng: random.Random, value: object) -> object:
    """A copy of a JSON value with one of its parts replaced, dropped, renamed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        copy, key = dict(value), rng.choice(list(value))
        way = rng.randrange(6)
        if way == 0:
            del copy[key]
        elif way == 1:
            copy[str(rng.choice(VALUES))] = copy.pop(key)
        else:
            copy[key] = value_damaged(rng, copy[key])
        return copy
    if isinstance(value, list) and value and rng.random() < 0.8:
        copied, place = list(value), rng.randrange(len(value))
        way = rng.randrange(6)
        if way == 0:
            del copied[place]
        elif way == 1:
            copied.insert(place, copied[place])
        else:
            copied[place] = value_damaged(rng, copied[place])
        return copied
    return rng.choice(VALUES)


def json_damaged(rng: random.Random, data: bytes) -> bytes:
    """As ``value_damaged`` on the text of a JSON value, or as ``bytes_damaged``."""
    if rng.random() < 0.3:
        return bytes_damaged(rng, data)
    return json.dumps(value_damaged(rng, json.loads(data))).encode()


class Fuzzer:
    """Good inputs of each kind, made once under ``place``, and what is done with damaged copies."""

    def __init__(self, place: Path) -> None:
        self.place = place
        rng = random.Random(0)
        words = ["stone", "river", "light", "héard", "日本", "bridge", "seven", "quiet"]
        self.texts = [" ".join(rng.choices(words, k=rng.randint(4, 20))) + f" {k}" for k in range(30)]
        self.tokenizer = train(self.texts, TokenizerConfig(vocab_size=270))
        self.tokenizer.save(place / "tokenizer.json")
        rows = [
            {
                "id": k,
                "text": text,
                "wordings": [text.upper()],
                "bits": 3.5,
                "cluster": f"c{k // 2}",
                "stratum": "odd",
                "probes": [
                    {"target": " 1", "prompt": text},
                    {"kind": "choice", "target": " a", "correct": True},
                ],
            }
            for k, text in enumerate(self.texts[:12])
        ]
        self.items = {
            "jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
            "json": json.dumps(rows).encode(),
            "csv": ("text,id,bits\n" + "".join(f'"{row["text"]}",{row["id"]},2\n' for row in rows)).encode(),
        }
        self.corpus = "".join(
            json.dumps({"text": t, "meta": {"n": k}}) + "\n" for k, t in enumerate(self.texts)
        )
        (place / "simulated").mkdir()
        self.made, self.order = simulated(place / "simulated")
        consumed = consume(self.made, self.order)
        head = ""
        for start, stop in ((0, STEPS // 2), (STEPS // 2, STEPS)):
            inside = consumed.windows["position"].is_between(start * BATCH, stop * BATCH - 1)
            own = consumed.exposures["position"].is_between(start * BATCH, stop * BATCH - 1)
            head = ledger.write_part(
                place / "simulated" / "ledger",
                start=start,
                stop=stop,
                global_batch_size=BATCH,
                windows=[consumed.windows.filter(inside)],
                exposures=[consumed.exposures.filter(own)],
                previous=head,
                plan=self.made.digest,
                order=self.order.identity,
            )
        self.head = head
        for step in (1, 2):
            path = saved.path_of(place / "checkpoints", step)
            weights = {"decoder.weight": torch.arange(12.0).reshape(3, 4), "optimizer.exp_avg": torch.ones(5)}
            plain.save(weights, storage_writer=plain.FileSystemWriter(str(path)), no_dist=True)
            artifact.finish(
                path,
                kind=saved.KIND,
                schema_version=saved.VERSION,
                config={"train": {"steps": 2, "seed": 0}},
                inputs={"ledger": head, "order": self.order.identity},
                facts={"step": step, "megatron_core": "0.16.1"},
            )
        (place / "checkpoints" / saved.REMOVED).write_text("0\n")
        self.overrides = self._overrides()
        GlobalHydra.instance().clear()

    def _overrides(self) -> list[str]:
        """Keys of the settings, with dots."""
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            from omegaconf import OmegaConf

            config = OmegaConf.to_container(compose("config", ["+experiment=quickstart"]), resolve=False)

        def flat(value: object, key: str) -> list[str]:
            inner = (
                [k for name, v in value.items() for k in flat(v, f"{key}.{name}")]
                if isinstance(value, dict)
                else []
            )
            return [*([key] if key else []), *inner]

        return [key.lstrip(".") for key in flat(config, "")]

    def case_items(self, rng: random.Random, place: Path) -> None:
        """An items file through the family ``table`` and the tokenizer."""
        kind = rng.choice(list(self.items))
        damaged = bytes_damaged if kind == "csv" or rng.random() < 0.5 else None
        if damaged is None and kind == "jsonl":
            lines = self.items[kind].splitlines()
            row = rng.randrange(len(lines))
            lines[row] = json_damaged(rng, lines[row])
            content = b"\n".join(lines)
        else:
            content = (damaged or json_damaged)(rng, self.items[kind])
        path = place / f"items.{kind}"
        path.write_bytes(content)
        items = make("table", FamilyContext(1, self.tokenizer, []), 8, {"path": str(path)})
        tokenize_items(items, self.tokenizer)
        tokenize_probes([(item.id, item.family, p) for item in items for p in item.probes], self.tokenizer)

    def case_corpus(self, rng: random.Random, place: Path) -> None:
        """Text through ``prepare``; afterwards there is a corpus that can be opened, or none."""
        kind = rng.choice(["jsonl", "jsonl", "text"])
        path = place / ("text.jsonl" if kind == "jsonl" else "text.txt")
        path.write_bytes(bytes_damaged(rng, self.corpus.encode()))
        source = SourceConfig(
            kind=kind,
            paths=(str(path),),
            min_words=1,
            bad_rows=rng.choice(["refuse", "drop"]),
            documents=rng.choice(["file", "line", "paragraph"]),
            text_field=rng.choice(["text", "text", "meta.n"]),
        )
        tokenizer = TokenizerConfig(kind="file", path=str(self.place / "tokenizer.json"))
        config = CorpusConfig(source=source, tokenizer=tokenizer, heldout_fraction=rng.choice([0.0, 0.2]))
        try:
            prepare(config, place / "corpus", workers=1, progress=lambda line: None)
        except UserError:
            assert not (place / "corpus").exists(), "a half-written corpus"
            raise
        load(place / "corpus")

    def case_tokenizer(self, rng: random.Random, place: Path) -> None:
        """A ``tokenizer.json`` through loading, encoding and decoding."""
        path = place / "tokenizer.json"
        path.write_bytes(json_damaged(rng, (self.place / "tokenizer.json").read_bytes()))
        tokenizer = load(path)
        for text in self.texts[:3]:
            ids, _ = tokenizer.encode_offsets(text)
            tokenizer.decode(ids)
        tokenizer.encode_batch(self.texts[:3])

    def _one_file(self, rng: random.Random, directory: Path) -> None:
        file = rng.choice([f for f in sorted(directory.rglob("*")) if f.is_file()])
        way = rng.randrange(8)
        if way == 0:
            file.unlink()
        elif way == 1:
            file.unlink()
            file.mkdir()
        else:
            damaged = json_damaged if file.suffix == ".json" else bytes_damaged
            file.write_bytes(damaged(rng, file.read_bytes()))

    def case_plan(self, rng: random.Random, place: Path) -> None:
        """A plan directory through reading, overlay and explanation."""
        shutil.copytree(self.place / "simulated" / "plan", place / "plan")
        self._one_file(rng, place / "plan")
        read = plan.read(place / "plan")
        read.overlay()
        list(explain.summary(read))

    def case_ledger(self, rng: random.Random, place: Path) -> None:
        """A ledger's parts through reading."""
        shutil.copytree(self.place / "simulated" / "ledger", place / "ledger")
        self._one_file(rng, place / "ledger")
        ledger.read(place / "ledger", head=self.head)

    def case_checkpoint(self, rng: random.Random, place: Path) -> None:
        """A run's checkpoints through listing, reading and verifying; what was edited is noticed."""
        directory = place / "checkpoints"
        shutil.copytree(self.place / "checkpoints", directory)
        path = saved.path_of(directory, 2) / artifact.MANIFEST
        before = json.loads(path.read_text())
        if rng.random() < 0.6:
            path.write_bytes(json_damaged(rng, path.read_bytes()))
        else:
            self._one_file(rng, directory)
        saved.removed(directory)
        for step in saved.finished(directory):
            place = saved.path_of(directory, step)
            manifest = saved.read(directory, step)
            checkpoint.require_whole(place, manifest)
            checkpoint.require_same(place, manifest, manifest.config, manifest.inputs)
            checkpoint.tensors(place)
        if path.is_file():
            assert json.loads(path.read_text()) == before, "an edited manifest was read"

    def case_manifest(self, rng: random.Random, place: Path) -> None:
        """A manifest through reading and verifying; what was edited is noticed."""
        shutil.copytree(self.place / "simulated" / "plan", place / "plan")
        path = place / "plan" / artifact.MANIFEST
        before = json.loads(path.read_text())
        path.write_bytes(json_damaged(rng, path.read_bytes()))
        manifest = artifact.read(place / "plan", kind=plan.KIND, schema_version=plan.VERSION)
        artifact.verify(place / "plan", manifest)
        assert json.loads(path.read_text()) == before, "an edited manifest was read"

    def case_override(self, rng: random.Random, place: Path) -> None:
        """Random overrides of the quickstart's settings, from the command line to the frozen settings."""
        from palimpsest.launch import dry_run
        from palimpsest.launch.compose import build

        given = [f"runs={place}/runs"]
        for _ in range(rng.choice((1, 1, 2))):
            value = rng.choice(
                [
                    json.dumps(rng.choice(VALUES)),
                    rng.choice(HOSTILE).decode(errors="replace"),
                    "null",
                    "[0,1]",
                    "1.5",
                ]
            )
            given.append(f"{rng.choice(['', '', '+', '++', '~'])}{rng.choice(self.overrides)}={value}")
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                composed = compose("config", ["+experiment=quickstart", *given])
        except (HydraException, OmegaConfBaseException, TypeError, ValueError, AttributeError):
            return  # said in a line by ``launch.program``
        try:
            experiment = build(composed)
        except (HydraException, OmegaConfBaseException):
            return
        list(dry_run.lines(experiment))
        assert not (place / "runs").exists(), "a dry run wrote something"

    def run(self, kind: str, seed: int) -> str | None:
        """One case.

        Returns:
            None if it ended well or in a ``UserError``; else the traceback.
        """
        rng = random.Random(f"{kind} {seed}")
        place = Path(tempfile.mkdtemp(dir=self.place))
        signal.signal(signal.SIGALRM, _late)
        signal.alarm(SECONDS)
        try:
            getattr(self, f"case_{kind}")(rng, place)
        except UserError as error:
            if "\n" in str(error):
                return f"a message of several lines: {error!r}"
        except BaseException as error:  # panics of tokenizers are no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            return traceback.format_exc()
        finally:
            signal.alarm(0)
            shutil.rmtree(place, ignore_errors=True)
        return None


SECONDS = 60
"""A case may take so long."""


def _late(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


SHARES = {
    **{"items": 6, "corpus": 2, "tokenizer": 3, "plan": 3, "ledger": 3, "checkpoint": 3, "manifest": 4},
    "override": 2,
}
"""How often each kind is tried."""


def kind_of(number: int) -> str:
    """Kind of a case: the kinds take turns by their shares."""
    turns = [kind for kind, share in SHARES.items() for _ in range(share)]
    return turns[number % len(turns)]


def main(arguments: list[str]) -> int:
    """Run cases and print escapes; 1 if there is any."""
    logging.disable(logging.CRITICAL)
    count, first = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0
    ran, escapes = Counter(), Counter()
    with tempfile.TemporaryDirectory() as place:
        fuzzer = Fuzzer(Path(place))
        for number in range(first, first + count):
            kind = kind_of(number)
            ran[kind] += 1
            if (escape := fuzzer.run(kind, number)) is not None:
                escapes[kind, escape.strip().splitlines()[-1][:160]] += 1
                if escapes[kind, escape.strip().splitlines()[-1][:160]] == 1:
                    sys.stdout.write(f"--- {kind} {number}\n{escape[-1500:]}\n")
                    sys.stdout.flush()
    for (kind, line), times in escapes.most_common():
        sys.stdout.write(f"{times} x {kind}: {line}\n")
    sys.stdout.write(f"{sum(ran.values())} cases ({dict(ran)}), {sum(escapes.values())} escapes\n")
    return int(bool(escapes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
