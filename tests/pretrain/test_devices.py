"""The model on a device that is not the CPU, with no GPU at hand: no operation may mix two devices.

Passes run on ``meta`` tensors under a mode that checks every operation.
"""

import json

import pytest

from tests import warm

SCRIPT = """
import json
import sys

import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

torch.cuda.set_device = lambda device: None
torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
torch.cuda.manual_seed = lambda *_: None
torch.cuda.default_generators = (torch.Generator(),)
new_group = distributed.new_group
distributed.new_group = lambda ranks=None, *_, **__: new_group(ranks, backend="fake")

from palimpsest.pretrain import kernels, losses, model
from palimpsest.pretrain.batches import Batch, document_starts
from palimpsest.pretrain.config import ModelConfig, ParallelConfig, TrainConfig

COPIES = {"_to_copy", "copy_", "_pin_memory"}


class OneDevice(TorchDispatchMode):
    \"\"\"Refuses operations between tensors of two devices, but for copies and for numbers.\"\"\"

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        tensors = [x for x in tree_iter((arguments, options)) if isinstance(x, torch.Tensor) and x.dim()]
        devices = {x.device.type for x in tensors}
        if len(devices) > 1 and function._schema.name.split("::")[1] not in COPIES:
            raise RuntimeError(f"{function} of tensors on {sorted(devices)}")
        return function(*arguments, **(options or {}))


def batch_on(device, masked):
    ids = torch.zeros(2, 64, dtype=torch.int64)
    parts = (
        *(ids, ids, torch.ones(2, 64), torch.arange(64).expand(2, -1), ids),
        document_starts(ids, 0) if masked else None,
    )
    return Batch(*(None if part is None else part.to(device) for part in parts))


def build(case, device):
    shape = {"name": "m", "layers": 2, "hidden": 64, "heads": 4, "ffn": 128, **case["model"]}
    train = TrainConfig(
        steps=4, global_batch_size=2, micro_batch_size=2, sequence_length=64, seed=1, checkpoint_every=4,
        precision=case["precision"],
    )
    gpt = model.build(ModelConfig(**shape), 512, ParallelConfig(), train, drawn=False)
    for module in gpt.modules():
        for name, one in list(module._parameters.items()):
            if one is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty_like(one, device=device))
        for name, one in list(module._buffers.items()):
            if one is not None:
                module._buffers[name] = torch.empty_like(one, device=device)
    return gpt


def main(case):
    torch.cuda.current_device = lambda: "meta"
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel()
    kernels.LOGITS["meta"], kernels.PRODUCTS["meta"] = 2**12, 1
    with OneDevice():
        gpt = build(case, "meta")
        # Before the first pass for training, as a checkpoint that is scored.
        with torch.no_grad():
            hidden = model.hidden_states(gpt.eval(), batch_on("meta", False).tokens)
        output, loss = losses.forward(2, iter([batch_on("meta", case["masked"])]), gpt.train())
        total, count, figures = loss(output)
        total.backward()
    found = [one.device.type for one in (hidden, total, count, figures["loss"])]
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
"""

SHAPES = {
    "llama": {},
    "gpt2": {
        **{"norm": "layer", "activation": "gelu_tanh", "biases": True, "positions": "learned"},
        "tied_embeddings": True,
    },
    "neox": {
        **{"norm": "layer", "activation": "gelu", "biases": True, "parallel_residual": True},
        **{"rotary_fraction": 0.25, "tied_embeddings": False},
    },
    "grouped": {"kv_heads": 2, "qk_norm": True},
}


@pytest.mark.parametrize(
    ("shape", "precision", "masked"),
    [*((shape, "bf16", False) for shape in SHAPES), ("llama", "fp32", False), ("llama", "fp32", True)],
)
def test_passes_stay_on_their_device(tmp_path, shape, precision, masked):
    """A forward pass as of scoring, and a step's forward and backward pass."""
    script, case = tmp_path / "devices.py", {"model": SHAPES[shape], "precision": precision, "masked": masked}
    script.write_text(SCRIPT)
    status, out = warm.run([str(script), json.dumps(case)], tmp_path)
    assert status == 0, out
    assert json.loads(out.splitlines()[-1]) == ["meta"] * 4
