"""Causal models of ``transformers``, by their own forward pass.

Scores equal those of a plain pass over each text alone, whatever the model's layers are. Texts are batched only if a
test pass shows that batching does not change predictions (:meth:`HuggingFace.together`).

Shapes: B rows, T tokens, P predictions, D entries of a state, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from palimpsest.analysis.scoring.models import Together, matrix
from palimpsest.data.errors import UserError

AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference of log-probabilities (nats) attributed to rounding, by precision."""
COARSE_AGREEMENT = 4.0
"""Largest differences attributed to rounding in bf16 and fp16, for the maximum and for the mean, in units of the
precision's relative rounding times the spread of the logits. They are wider because these precisions round differently
whenever the order of a sum changes."""
PLACES = 64
"""Number of positions of a text at which predictions are compared."""


class HuggingFace:
    """A causal model of ``transformers``.

    Args:
        model: model from ``from_pretrained``, in evaluation mode.
        body: the module whose last hidden state, times the output matrix, is exactly the logits. None if there is no
            such module (logit caps, scales, biases, quantised or off-loaded output matrices); the states are then the
            logits themselves.
        vocabulary: number of logits.
        positions: tokens in the longest text that it can read; None if there is no bound.
    """

    def __init__(self, model: Any, *, body: Any, vocabulary: int, positions: int | None) -> None:
        self.model = model
        self.body = body
        self.vocabulary = vocabulary
        self.positions = positions
        self._together: dict[int, Together] = {}

    @property
    def device(self) -> torch.device:
        """Device of the input embeddings, or the first one that modules were put on (``device_map``)."""
        weight: Tensor = self.model.get_input_embeddings().weight
        if weight.device.type != "meta":
            return weight.device
        places = [torch.device(place) for place in set(self.model.hf_device_map.values()) - {"disk", "cpu"}]
        return min(places, key=str, default=torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the computation."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def width(self) -> int:
        """Number of entries of a state, D."""
        return (
            int(self.model.get_output_embeddings().weight.shape[1])
            if self.body is not None
            else self.vocabulary
        )

    def states(self, ids_BT: Tensor) -> Tensor:
        """Final hidden states or logits, (B, T, D)."""
        _forget_lengths(self.model)
        if self.body is not None:
            states: Tensor = self.body(input_ids=ids_BT, **_no_cache(self.body)).last_hidden_state
        else:
            states = self.model(input_ids=ids_BT, **_no_cache(self.model)).logits
        return states

    def output(self, vocab_size: int) -> Callable[[Tensor], Tensor]:
        """Function from states, (P, D), to logits, (P, vocab_size) float32."""
        if self.body is not None:
            return matrix(self.model.get_output_embeddings().weight, vocab_size)
        return lambda logits_PV: logits_PV[:, :vocab_size].float()

    def together(self, length: int) -> Together:
        """Texts that may share a batch: any, those of one length, or none (``analysis.scoring.models.Together``).

        Determined by a test: a text is read alone, in a batch, padded, and as the beginning of a longer one, and the
        predictions are compared. Models whose rotary frequencies depend on the text's length (``dynamic``,
        ``longrope``) are recognised by name, because the difference at early positions is smaller than bf16 rounding;
        only texts of the same length share a batch there.

        Args:
            length: tokens of the longest text.

        Raises:
            UserError: if the model cannot read a text of this length.
        """
        if length not in self._together:
            try:
                with torch.inference_mode():
                    self._together[length] = self._try(length)
            except (IndexError, RuntimeError) as error:
                raise UserError(
                    f"{type(self.model).__name__} cannot read a text of {length} tokens, the longest: "
                    f"{' '.join(str(error).split())[:200]}"
                ) from None
        return self._together[length]

    def _try(self, length: int) -> Together:
        ids = sample(length, self.vocabulary, self.device)
        half = max(1, length // 2)
        padded = ids.clone()
        padded[half:] = 0
        both = self.states(torch.stack([ids, padded]))
        # A text inside a longer one: shorter by a lot and by one, so that windows end before and after its end.
        same = [(both[0, :cut], cut) for cut in {min(16, length), half, max(1, length - 1)}]
        same.append((both[1, :half], half))
        if not _depends_on_length(self.model) and all(
            self._agree(states, self.states(ids[None, :cut])[0]) for states, cut in same
        ):
            return Together.ANY
        alone = self.states(ids[None])[0]
        return Together.SAME_LENGTH if self._agree(both[0], alone) else Together.NONE

    def _agree(self, one_TD: Tensor, other_TD: Tensor) -> bool:
        """True if two passes' states of the same text, (T, D), give the same log-probabilities, within rounding."""
        places = torch.linspace(0, len(one_TD) - 1, min(PLACES, len(one_TD))).long().to(one_TD.device)
        logits = self.output(self.vocabulary)
        return agree(logits(one_TD[places]), logits(other_TD[places]), self.dtype)


def agree(one_PV: Tensor, other_PV: Tensor, dtype: torch.dtype) -> bool:
    """True if two sets of logits computed in a precision give the same log-probabilities, within rounding."""
    one, other = one_PV.float().log_softmax(-1), other_PV.float().log_softmax(-1)
    if dtype in AGREEMENT:
        return bool(torch.allclose(one, other, rtol=0, atol=AGREEMENT[dtype]))
    spread = one_PV.float().std(-1)
    off = (one - other).square().mean(-1).sqrt()
    return bool((off.mean() <= COARSE_AGREEMENT * torch.finfo(dtype).eps / 2 * spread.mean()).item())


def sample(length: int, vocabulary: int, device: torch.device) -> Tensor:
    """Arbitrary token ids, (length,) int64, with which a model is tested."""
    return (torch.arange(length, device=device) * 7919 + 1) % vocabulary


def open_huggingface(
    path: str | Path, device: torch.device, options: Mapping[str, Any] | None = None
) -> HuggingFace:
    """A causal model of ``transformers`` by path or name.

    Float32 on CPUs, the saved precision on GPUs; quantised weights as they were saved. Code that comes with a model is
    never run.

    Args:
        path: directory, or name on the hub.
        device: device of the weights, unless ``options`` has a ``device_map``.
        options: further arguments of ``from_pretrained``, such as ``revision``, ``dtype``, ``device_map``,
            ``quantization_config``.

    Raises:
        UserError: if ``transformers`` is missing, cannot open it, or :func:`of_huggingface` refuses it.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"{path} is a Hugging Face model; install transformers (pip install -e '.[huggingface]')"
        ) from None
    options = dict(options or {})
    dtype = options.get("dtype", "auto")
    if (
        isinstance(dtype, str)
        and dtype != "auto"
        and not isinstance(getattr(torch, dtype, None), torch.dtype)
    ):
        raise UserError(f"dtype={dtype!r} is unknown; give auto, float32, bfloat16 or float16")
    named = {"revision": options["revision"]} if "revision" in options else {}
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False, **named)
        if getattr(config, "is_encoder_decoder", False):
            raise UserError(
                f"{path} is an encoder-decoder ({config.model_type}): its text has no probability without what the "
                "encoder reads; give a causal (decoder-only) language model"
            )
        quantised = getattr(config, "quantization_config", None) or options.get("quantization_config")
        options.setdefault("dtype", torch.float32 if device.type == "cpu" and not quantised else "auto")
        if quantised:  # cannot be moved once they are loaded
            options.setdefault("device_map", {"": str(device)})
        opened: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, trust_remote_code=False, **options
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(
            f"transformers cannot open {path} as a causal language model: {' '.join(str(error).split())[:300]}"
        ) from None
    return of_huggingface(opened if "device_map" in options else opened.to(device))


def of_huggingface(opened: Any) -> HuggingFace:
    """Wrap an open ``transformers`` model, like :func:`open_huggingface`.

    Raises:
        UserError: if the model is no causal language model: it has no logits, or a prediction depends on later tokens.
    """
    opened.eval()
    name = type(opened).__name__
    vocabulary = int(opened.get_input_embeddings().weight.shape[0])
    device = HuggingFace(opened, body=None, vocabulary=vocabulary, positions=None).device
    ids = sample(16, vocabulary, device)
    changed = ids.clone()
    changed[8:] = ids[8:].flip(0)
    with torch.inference_mode(), _Tables() as tables, _heads(opened) as heads:
        output = opened(input_ids=torch.stack([ids, changed]), **_no_cache(opened))
    logits_BTV: Tensor | None = getattr(output, "logits", None)
    if logits_BTV is None or logits_BTV.shape[:2] != (2, 16):
        raise UserError(f"{name} is not a causal language model: it gives no logits for each token")
    if not agree(logits_BTV[0, :8], logits_BTV[1, :8], opened.dtype):
        raise UserError(
            f"{name} is not a causal language model as it was saved: what it predicts depends on later tokens (an "
            "encoder, or a prefix that is read in both directions)"
        )
    model = HuggingFace(
        opened,
        body=heads.body(logits_BTV),
        vocabulary=logits_BTV.shape[-1],
        positions=tables.bound(getattr(opened.config.get_text_config(), "max_position_embeddings", None)),
    )
    if model.body is not None:
        with torch.inference_mode():  # the body called by itself must return the same
            again = model.output(model.vocabulary)(model.states(ids[None])[0])
        if not agree(again, logits_BTV[0].to(again.device), opened.dtype):
            model.body = None
    return model


class _Heads:
    """Recorder of one forward pass: outputs of the model's parts, and input and output of its output matrix."""

    def __init__(self, model: Any) -> None:
        self.matrix = model.get_output_embeddings()
        self.bodies = [model.base_model, model.get_decoder() if hasattr(model, "get_decoder") else None]
        self.outputs: dict[int, Tensor] = {}
        self.ends: tuple[Tensor, Tensor] | None = None

    def body(self, logits_BTV: Tensor) -> Any:
        """The module whose last hidden state, times the output matrix, equals the logits bit for bit; None if there is
        none.
        """
        if self.ends is None or type(self.matrix) is not nn.Linear or self.matrix.bias is not None:
            return None
        weight = self.matrix.weight
        if weight.device.type == "meta" or not torch.equal(self.ends[1].to(logits_BTV), logits_BTV):
            return None
        return next(
            (
                b
                for b in self.bodies
                if id(b) in self.outputs and torch.equal(self.outputs[id(b)], self.ends[0])
            ),
            None,
        )


@contextmanager
def _heads(model: Any) -> Iterator[_Heads]:
    heads = _Heads(model)

    def of_body(module: Any, given: Any, output: Any) -> None:
        if isinstance(getattr(output, "last_hidden_state", None), Tensor):
            heads.outputs[id(module)] = output.last_hidden_state

    def of_matrix(module: Any, given: tuple[Tensor, ...], output: Tensor) -> None:
        heads.ends = (given[0], output.clone()) if given else None

    parts = {id(part): part for part in heads.bodies if isinstance(part, nn.Module) and part is not model}
    hooks = [part.register_forward_hook(of_body) for part in parts.values()]
    if heads.matrix is not None:
        hooks.append(heads.matrix.register_forward_hook(of_matrix))
    try:
        yield heads
    finally:
        for hook in hooks:
            hook.remove()


class _Tables(TorchFunctionMode):  # type: ignore[misc]
    """Recorder of the tables from which a pass looks up consecutive rows, which are tables of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, bool]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (nn.functional.embedding, torch.embedding):
            index, table = (args[0], args[1]) if func is nn.functional.embedding else (args[1], args[0])
            self._look(index, table.shape[0], learned=True)
        elif func in (torch.gather, Tensor.gather) and len(args) > 2 and args[0].dim() == 3:
            self._look(args[2][..., 0], args[0].shape[args[1]], learned=False)
        elif func is Tensor.__getitem__:
            index = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
            if isinstance(index, Tensor) and not index.is_floating_point() and args[0].dim() > 1:
                self._look(index, args[0].shape[0], learned=False)
        return func(*args, **kwargs)

    def _look(self, index: Tensor, rows: int, *, learned: bool) -> None:
        with torch._C.DisableTorchFunction():
            row = index.reshape(-1, index.shape[-1])[0] if index.dim() else index.reshape(1)
            if index.dtype != torch.bool and len(row) == 16 and bool((row.diff() == 1).all()):
                self.rows.append((rows - int(row[0]), learned))

    def bound(self, declared: int | None) -> int | None:
        """Number of rows of the shortest table; tables other than embeddings count only if they have the declared
        number of rows.
        """
        return min((rows for rows, learned in self.rows if learned or rows == declared), default=None)


def _no_cache(module: Any) -> dict[str, bool]:
    """Arguments that switch off the cache of keys, values and states."""
    return {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}


def _rotary(model: Any) -> Iterator[tuple[Any, str, str]]:
    """Modules of rotary positions: the module, the prefix of its names for a kind of layer, and the kind of scaling."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str):
            yield module, "", kinds
        elif isinstance(kinds, Mapping):
            for layer, kind in kinds.items():
                yield module, f"{layer}_", str(kind)


def _depends_on_length(model: Any) -> bool:
    return any("dynamic" in kind or "longrope" in kind for _, _, kind in _rotary(model))


def _forget_lengths(model: Any) -> None:
    """Reset ``dynamic`` rotary frequencies, which depend on the longest text so far, to those of a fresh model."""
    for module, prefix, kind in _rotary(model):
        if "dynamic" in kind and hasattr(module, f"{prefix}original_inv_freq"):
            now = getattr(module, f"{prefix}inv_freq")
            setattr(module, f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq").to(now.device))
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
