"""Reading a checkpoint runs nothing that lies in it."""

import io
import pickle
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import checkpoint as plain
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.pretrain import checkpoint, engine


def whole(tmp_path, damaged):
    """A checkpoint's manifest, with one file changed after it; and what two ranks say of it, reading a half each."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    config = {"kind": "checkpoint", "schema_version": 1, "config": {}, "inputs": {}, "facts": {}}
    manifest = artifact.finish(tmp_path, **config)
    (tmp_path / damaged).write_text("other")
    problems = []
    for rank in range(2):

        def note(problem):
            problems.append(problem)
            return problems

        with suppress(UserError):
            checkpoint.require_whole(tmp_path, manifest, SimpleNamespace(rank=rank, size=2, gather=note))
    return problems


@pytest.mark.parametrize(("damaged", "finder"), [("a", 0), ("b", 1), ("c", 0)])
def test_ranks_check_a_share_of_the_files_each(tmp_path, damaged, finder):
    problems = whole(tmp_path, damaged)
    assert f"{damaged} was changed" in problems[finder]
    assert problems[1 - finder] is None


def test_a_damage_that_another_rank_finds_is_everyone_s(tmp_path):
    (tmp_path / "a").write_text("a")
    manifest = artifact.finish(tmp_path, kind="checkpoint", schema_version=1, config={}, inputs={}, facts={})
    other = SimpleNamespace(rank=0, size=2, gather=lambda _: [None, "x/b was changed; make it again"])
    with pytest.raises(UserError, match="x/b was changed; copy the checkpoint again"):
        checkpoint.require_whole(tmp_path, manifest, other)


def test_a_checkpoint_of_a_newer_engine_is_refused_in_a_line(tmp_path, monkeypatch):
    """0.19 writes no ``common.pt``; 0.16.1 would end in a traceback."""
    path = checkpoint.path_of(tmp_path, 1)
    path.mkdir()
    monkeypatch.setattr(engine, "VERSION", (0, 16, 1))
    with pytest.raises(
        UserError, match=r"step_00000001 was written by megatron-core 0\.19 or later.*; install"
    ) as told:
        checkpoint.load(tmp_path, 1, {})
    assert "\n" not in str(told.value)
    (path / "common.pt").touch()
    engine.require_readable(path)
    monkeypatch.setattr(engine, "VERSION", (0, 19, 2))
    (path / "common.pt").unlink()
    engine.require_readable(path)


@dataclass
class Trap:
    """Unpickled, it makes a file."""

    path: Path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def saved(tmp_path):
    """A small checkpoint."""
    state = {"weights": torch.arange(6.0).reshape(2, 3), "low": torch.ones(4, dtype=torch.bfloat16)}
    path = tmp_path / "step_00000001"
    plain.save(state, storage_writer=FileSystemWriter(path), no_dist=True)
    return path, state


def test_a_whole_one_is_read(saved):
    path, state = saved
    found = checkpoint.tensors(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_an_index_that_holds_code(saved, tmp_path):
    path, _ = saved
    mark = tmp_path / "mark"
    known = FileSystemReader(path).read_metadata()
    known.planner_data = Trap(mark)  # deep inside of what is right otherwise
    (path / ".metadata").write_bytes(pickle.dumps(known))
    for read in (lambda: checkpoint.tensors(path), lambda: checkpoint.load(tmp_path, 1, {})):
        with pytest.raises(
            UserError, match=r"step_00000001/\.metadata is no index of a checkpoint \(it asks for "
        ):
            read()
    assert not mark.exists()
    FileSystemReader(path).read_metadata()  # the trap works
    assert mark.exists()


@pytest.mark.parametrize("damage", [b"", b"\x80\x04", b"no pickle"])
def test_a_damaged_index(saved, damage):
    path, _ = saved
    (path / ".metadata").write_bytes(damage)
    with pytest.raises(UserError, match="is no index of a checkpoint"):
        checkpoint.tensors(path)


def test_an_object_that_is_code(saved, tmp_path):
    """Beside tensors PyTorch loads objects as they are, asked or not; not within a checkpoint of ours."""
    path, _ = saved
    mark, held = tmp_path / "mark", io.BytesIO()
    torch.save([Trap(mark)], held)
    held.seek(0)
    with checkpoint._harmless(path), pytest.raises(pickle.UnpicklingError):
        torch.load(held, weights_only=False)
    assert not mark.exists()
    held.seek(0)
    torch.load(held, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("damage", [b"7\n\xff\xfe", None])
def test_a_damaged_list_of_pruned_checkpoints_is_named(tmp_path, damage):
    path = tmp_path / "removed.txt"
    path.mkdir() if damage is None else path.write_bytes(damage)
    with pytest.raises(UserError, match=r"removed\.txt is damaged"):
        checkpoint.removed(tmp_path)
