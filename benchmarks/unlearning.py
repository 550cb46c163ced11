"""Losses of unlearning methods beside those of open-unlearning's own code, on one tiny model and one batch.

    git clone https://github.com/locuslab/open-unlearning
    PYTHONPATH=. python -m benchmarks.unlearning open-unlearning

Prints each loss on the forget set by either code, and ends with 1 if any two differ by more than 1e-4. A ``.git``
directory does, too. Of open-unlearning only functions of tensors are run, not its trainers.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor

from palimpsest.pretrain.config import PosttrainConfig
from palimpsest.pretrain.posttraining.methods import METHODS, Batch, Rows
from palimpsest.pretrain.posttraining.trainer import method_settings

IGNORED = -100
LAYER = 1
SETTINGS: dict[str, dict[str, float]] = {
    "npo": {"beta": 0.1},
    "dpo": {"beta": 0.1},
    "simnpo": {"beta": 0.5, "delta": 0.1},
    "undial": {"beta": 10.0},
    "wga": {"beta": 0.5},
    "satimp": {"beta1": 0.5, "beta2": 1.0},
    "ceu": {"ignored": 0.0},
}
"""Settings at which an untrained model's losses are not near 0."""


def theirs(repository: Path, path: str) -> ModuleType:
    """A file of the repository as a module, without the imports that it shares with its trainers."""
    git = ["git", "-C", str(repository), "show", f"HEAD:src/trainer/{path}"]
    source = subprocess.run(git, check=True, capture_output=True, text=True).stdout
    lines = [line for line in source.split("\n") if not line.startswith(("from trainer", "import deepspeed"))]
    module = ModuleType(path)
    bases: dict[str, Any] = {"GradDiff": object, "UnlearnTrainer": object}
    module.__dict__.update(bases)
    exec(compile("\n".join(lines), path, "exec"), module.__dict__)
    return module


def rows(model: Any, ids: Tensor, mask: Tensor) -> Rows:
    """The model's outputs on texts, as our methods take them."""
    out = model(ids, output_hidden_states=True)
    logits, labels = out.logits[:, :-1], ids[:, 1:]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    counted = mask[:, 1:].float()
    return Rows(
        nll=nll,
        mask=counted,
        tokens=float(counted.sum()),
        rows=len(ids),
        labels=labels,
        logits=logits,
        hidden=out.hidden_states[LAYER + 1][:, :-1],
    )


def their_pdu(repository: Path, model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Their loss of PDU on the forget set alone.

    Theirs counts the logits at a label's own place, not those that predict it: it gets labels moved by one.
    """
    moved = torch.full_like(inputs["labels"], IGNORED)
    moved[:, :-1] = inputs["labels"][:, 1:]
    only_forget = SimpleNamespace(
        compute_retain_loss=lambda **_: torch.zeros(()), final_loss_value=lambda losses: losses[0]
    )
    both = {"forget": {**inputs, "labels": moved}, "retain": inputs}
    loss: Tensor = theirs(repository, "unlearn/pdu.py").PDU.compute_loss(only_forget, model, both)
    return loss


def main(arguments: Sequence[str]) -> int:
    """Compare; 1 if a loss differs."""
    repository = Path(arguments[0])
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model, before = (transformers.LlamaForCausalLM(config).eval() for _ in range(2))
    ids = torch.randint(1, 97, (6, 20))
    lengths = torch.tensor([20, 12, 7, 20, 15, 9])
    mask = torch.arange(20) < lengths[:, None]
    labels = ids.masked_fill(~mask, IGNORED)
    labels[:, 0] = IGNORED  # is no target; SimNPO's code would count it
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    utils, ceu = theirs(repository, "utils.py"), theirs(repository, "unlearn/ceu.py")
    whole = {**inputs, "labels": ids}
    rmu = theirs(repository, "unlearn/rmu.py").RMU

    def their_simnpo() -> Tensor:  # the body of SimNPO.compute_loss without its retain set
        nll, _ = utils.compute_batch_nll(model, inputs)
        nll = nll / (labels != IGNORED).sum(-1) - SETTINGS["simnpo"]["delta"]
        beta = SETTINGS["simnpo"]["beta"]
        return -torch.nn.functional.logsigmoid(beta * nll).mean() * 2 / beta

    def their_rmu() -> Tensor:
        # Row by row: of several rows of unequal lengths theirs divides every row's sum by every row's length.
        hidden = model(ids, output_hidden_states=True).hidden_states[LAYER + 1][:, :-1]
        u = torch.rand(32, generator=torch.Generator().manual_seed(0))
        target = (2 * u / u.norm()).expand_as(hidden)
        each = [
            rmu.compute_activation_loss(None, *(x[k : k + 1] for x in (hidden, target, mask[:, 1:].float())))
            for k in range(len(ids))
        ]
        return torch.stack(each).mean()

    refusal = ids.flip(0)
    refusal_labels = refusal.masked_fill(~mask, IGNORED)
    refusal_labels[:, 0] = IGNORED
    wanted = {"input_ids": refusal, "attention_mask": torch.ones_like(ids), "labels": refusal_labels}
    beta = {name: list(values.values()) for name, values in SETTINGS.items()}
    their_losses: dict[str, Callable[[], Tensor]] = {
        "grad_diff": lambda: -model(**inputs).loss,
        "npo": lambda: utils.compute_dpo_loss(model, before, None, inputs, *beta["npo"])[0],
        "simnpo": their_simnpo,
        "undial": lambda: utils.compute_undial_loss(model, before, whole, *beta["undial"])[0],
        "wga": lambda: utils.compute_wga_loss(model, inputs, *beta["wga"])[0],
        "satimp": lambda: utils.compute_satimp_loss(model, inputs, *beta["satimp"])[0],
        "ceu": lambda: ceu.compute_batch_ceu(model, inputs, 0)[0],
        "rmu": their_rmu,
        "dpo": lambda: utils.compute_dpo_loss(model, before, wanted, inputs, *beta["dpo"])[0],
        "pdu": lambda: their_pdu(repository, model, inputs),
    }
    worst = 0.0
    with torch.no_grad():
        batch = Batch(
            *(rows(one, ids, mask) for one in (model, model, before, before)),
            *(rows(one, refusal, mask) for one in (model, before)),
        )
        every = Batch(*(rows(one, ids, torch.ones_like(mask)) for one in (model, model, before, before)))
        for name, their in their_losses.items():
            given = SETTINGS.get(name, {})
            settings = method_settings(METHODS[name], PosttrainConfig(method=name, settings=given))
            # Theirs of UNDIAL averages over filled-up places, too: it gets rows without any.
            ours, other = (
                float(METHODS[name].loss(every if name == "undial" else batch, settings)),
                float(their()),
            )
            worst = max(worst, abs(ours - other))
            print(f"{name:10} ours {ours:.6f}  open-unlearning {other:.6f}")
    print(f"largest difference {worst:.1e}")
    return int(worst > 1e-4)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
