"""Reading a checkpoint runs nothing that lies in it."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as plain
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from palimpsest.data.errors import UserError
from palimpsest.pretrain import checkpoint


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
