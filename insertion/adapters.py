"""Adapters that apply the overlay in other trainers, for map-style datasets and for streams. Needs numpy alone.

Example, for a plain map-style dataset of windows in training order::

    from palimpsest.insertion import plan
    from palimpsest.insertion.adapters import MapStyle

    dataset = MapStyle(dataset, plan.read("runs/.../plan").overlay())

The dataset's index must be the training position: the overlay decides by it. The plan must have been made for the
same windows (its ``order`` input), and windows must hold L + 1 tokens or be split into tokens and labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from palimpsest.insertion.overlay import Overlay


class _Indexed(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def overlaid(overlay: Overlay, position: int, sample: Any) -> Any:
    """One sample with the plan applied; the sample itself if nothing is planned for it.

    Args:
        overlay: overlay of the plan.
        position: sample index.
        sample: the window as an array or tensor of L + 1 token ids, or a mapping with ``tokens`` and ``labels`` (or
            ``input_ids`` of L + 1 tokens) and any other keys, which are unchanged. If the plan excludes tokens from the
            loss, the mapping must have a ``loss_mask`` (L,) or, with ``input_ids``, a ``label_mask`` (L + 1,); it must
            be of floating point if the plan has weights other than 0 and 1.

    Returns:
        Sample of the same type, dtype and shape; a copy if it was changed.

    Raises:
        ValueError: if the plan excludes tokens from the loss and the sample has no mask, or a mask that cannot hold the
            weights.
    """
    if not overlay.planned(position):
        return sample
    sample = _masked(overlay, position, sample)
    if not isinstance(sample, Mapping):
        return _like(sample, overlay.apply(position, np.asarray(sample)))
    if "input_ids" in sample:
        window = overlay.apply(position, np.asarray(sample["input_ids"]))
        return {**sample, "input_ids": _like(sample["input_ids"], window)}
    tokens, labels = np.asarray(sample["tokens"]), np.asarray(sample["labels"])
    window = overlay.apply(position, np.append(tokens, labels[-1]))
    return {
        **sample,
        "tokens": _like(sample["tokens"], window[:-1]),
        "labels": _like(sample["labels"], window[1:]),
    }


def _masked(overlay: Overlay, position: int, sample: Any) -> Any:
    whole = isinstance(sample, Mapping) and "input_ids" in sample
    mask = "label_mask" if whole else "loss_mask"
    tokens = sample.get("input_ids", sample.get("tokens")) if isinstance(sample, Mapping) else sample
    counted = overlay.loss_mask(position, len(tokens) - (whole or not isinstance(sample, Mapping)))
    if counted is None:
        return sample
    if not isinstance(sample, Mapping) or mask not in sample:
        raise ValueError(
            f"the plan excludes tokens of window {position} from the loss, but its sample has no {mask}; add one"
        )
    flags = np.append(np.float32(1), counted) if whole else counted
    given = np.asarray(sample[mask])
    if given.dtype.kind != "f" and (flags != (flags != 0)).any():
        raise ValueError(
            f"the plan weighs losses of window {position}, but its sample's {mask} is {given.dtype}"
        )
    return {**sample, mask: _like(sample[mask], (given * flags).astype(given.dtype))}


def _like(original: Any, array: np.ndarray[Any, Any]) -> Any:
    """Convert an array to the type of ``original``: numpy, a torch tensor (without importing torch), or a list."""
    if isinstance(original, np.ndarray):
        return np.ascontiguousarray(array)
    if isinstance(original, list):
        return array.tolist()
    return original.new_tensor(array)


class MapStyle:
    """A map-style dataset (``torch.utils.data.Dataset``, megatron-core's, OLMo-core's) with the plan applied.

    Args:
        dataset: map-style dataset whose index is the training position.
        overlay: overlay of the plan.
        position: function from index to position, if they differ (for OLMo-core's fixed-length
        dataset: ``np.argsort(global_indices).__getitem__``).
    """

    def __init__(
        self, dataset: _Indexed, overlay: Overlay, position: Callable[[int], int] | None = None
    ) -> None:
        self.dataset, self.overlay, self.position = dataset, overlay, position

    def __len__(self) -> int:
        """Number of samples of the dataset."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """The sample at an index, with the plan applied."""
        position = index if self.position is None else int(self.position(index))
        return overlaid(self.overlay, position, self.dataset[index])


def iterate(samples: Iterable[Any], overlay: Overlay, positions: Iterable[int]) -> Iterator[Any]:
    """A stream of samples whose positions are known, with the plan applied.

    Args:
        samples: the stream.
        overlay: overlay of the plan.
        positions: training position of each sample: ``itertools.count(consumed)`` for a stream in training order on one
            rank, ``itertools.count(consumed + rank, ranks)`` for one that is distributed over ranks.
    """
    for position, sample in zip(positions, samples, strict=False):
        yield overlaid(overlay, position, sample)
