"""launch/train.py with one fault in its overlay: ``broken_train.py FAULT overrides...`` (run by test_broken).

``nan:3,15`` makes the weights of the losses of steps 3 and 15 NaN, once they are checked and recorded.
"""

import sys
from dataclasses import replace

import numpy as np

from palimpsest.insertion.overlay import Overlay

FAULT = sys.argv.pop(1)
ROW = 6  # of the exposures table
right = Overlay.apply


def wrong(self, position, window):
    if not len(self.position):  # the twin
        return window
    span = self._span(ROW)
    here = position == self.position[ROW]
    if FAULT == "skip" and here:
        return window
    found = right(self, position, window)
    if FAULT == "token" and here:
        found[span.offset + 1] += 1
    free = next(p for p in range(10, 160) if not self.spans(p))
    if FAULT == "twice" and position == free:
        item = self.wording_tokens(span.wording)
        found = np.concatenate([window[:9], [self.eod], item, [self.eod], window[9:]])[: len(window)]
    return found


def poisoned(steps):
    from palimpsest.pretrain.batches import Batches

    right = Batches.step

    def step(self, number, **how):
        for batch in right(self, number, **how):
            bad = float("nan") if number in steps else 1.0
            yield replace(batch, loss_mask=batch.loss_mask * bad)

    Batches.step = step


if FAULT.startswith("nan:"):
    STEPS = [int(step) for step in FAULT[4:].split(",")]
else:
    Overlay.apply = wrong

if __name__ == "__main__":
    if FAULT.startswith("nan:"):
        poisoned(STEPS)
    from palimpsest.launch.train import main

    main()
