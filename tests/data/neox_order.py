"""gpt-neox's order of one epoch, written from the published algorithm (megatron/data/gpt2_dataset.py), in plain Python.

    python tests/data/neox_order.py > tests/data/golden_order.json

makes the golden file again: a change of it needs a reason in the commit message.
"""

import json
import sys

import numpy as np

LENGTHS = [int(n) for n in np.random.RandomState(42).randint(2, 60, size=80)]
SEQUENCE_LENGTH, SEED = 16, 1234


def one_epoch(lengths, sequence_length, seed):
    """(document order, [document place, offset] where each sample begins and the last ends, sample order)."""
    rng = np.random.RandomState(seed)
    documents = np.arange(len(lengths), dtype=np.int32)
    rng.shuffle(documents)
    samples, place, offset = [[0, 0]], 0, 0
    for _ in range((sum(lengths) - 1) // sequence_length):
        left = sequence_length + 1
        while left:
            here = lengths[documents[place]] - offset
            left -= here
            if left <= 0:
                offset += left + here - 1  # the last token is the first of the next sample
                left = 0
            else:
                place, offset = place + 1, 0
        samples.append([place, offset])
    order = np.arange(len(samples) - 1, dtype=np.uint32)
    rng.shuffle(order)
    return documents.tolist(), samples, order.tolist()


if __name__ == "__main__":
    documents, samples, order = one_epoch(LENGTHS, SEQUENCE_LENGTH, SEED)
    found = {"lengths": LENGTHS, "sequence_length": SEQUENCE_LENGTH, "seed": SEED}
    found |= {"documents": documents, "samples": samples, "order": order}
    sys.stdout.write(json.dumps(found) + "\n")
