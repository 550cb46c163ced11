"""Run by test_released_models.py, on one or two ranks: start from models, take one step, and write down what came."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from palimpsest.pretrain import model, parallel
from palimpsest.pretrain.config import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RuntimeConfig,
    TrainConfig,
)
from palimpsest.pretrain.hooks import Hook
from palimpsest.pretrain.huggingface import mapping, shapes
from palimpsest.pretrain.settings import Settings
from palimpsest.pretrain.trainer import Trainer

TRAIN = TrainConfig(
    steps=2, global_batch_size=4, micro_batch_size=2, sequence_length=32, seed=1, checkpoint_every=2
)
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2, min_learning_rate=1e-2, warmup_steps=0, schedule="constant", clip_grad=0.0
)


class Windows:
    """A corpus's order, of windows that lie in a file."""

    identity, eod = "windows", 0

    def __init__(self, windows):
        self.windows = windows

    def require(self, count):
        pass  # one of the two steps is taken

    def window(self, position):
        return self.windows[position]


class Kept(Hook):
    """A hook that keeps the records."""

    def __init__(self):
        self.records = []

    def after_step(self, trainer, record):
        self.records.append(record)


def step(name, place, ids, world):
    """Logits of the first windows, and the trainer's record of the first step."""
    given = shapes.shape_of(shapes.read_config(place / name), name)
    shape = ModelConfig(name=name, weights=str(place / name), **shapes.typed(given))
    topology = ParallelConfig(tensor=world.size, sequence=world.size > 1 and shape.experts is not None)
    gpt = model.build(shape, 396, topology, TRAIN, mapping.read(shape, 396)).eval()
    text = ids[:2, :-1]
    with torch.no_grad():
        logits = gpt(text, torch.arange(32).expand_as(text), None)
        parts = [torch.empty_like(logits) for _ in range(world.size)]
        torch.distributed.all_gather(parts, logits)
    trainer = Trainer(
        Settings(model=shape, optimizer=OPTIMIZER, train=TRAIN, parallel=topology),
        world,
        order=Windows(ids.numpy()),
        plan=None,
        vocab_size=396,
        directory=place / f"{name}_{world.size}",
    )
    trainer.resume()
    kept = Kept()
    trainer.run([kept], until=1)
    np.save(place / f"{name}_{world.size}.npy", torch.cat(parts, -1)[..., :396].numpy())
    (record,) = kept.records
    return {
        "loss": record["loss"],
        "gradient_norm": record["gradient_norm"],
        "held": sum(one.numel() for one in gpt.parameters()),
        "counted": shape.parameters(512, 32),
    }


def main():
    place, ranks = Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1"))
    ids = torch.from_numpy(np.load(place / "windows.npy"))
    with parallel.start(ParallelConfig(tensor=ranks), RuntimeConfig(device="cpu")) as world:
        found = {name: step(name, place, ids, world) for name in sys.argv[2:]}
        if world.main:
            (place / f"steps_{ranks}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
