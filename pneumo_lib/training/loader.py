"""The cases of an epoch, in random order and whole batches, read ahead of the training step."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

_CHUNK = 32  # steps between two visits to Python
_BLOCK = 2**28  # bytes that are read ahead at most: features of large images are megabytes each


def epoch_order(rows, *, seed, epoch, flips=False, positive=None, share=None):
    """`rows` in the order of one epoch; a row `i` that is to be mirrored is written as `~i`.

    Args:
        rows: `(n,)` int array, each 0 or more.
        seed, epoch: decide the order, and nothing else does: a resumed run goes on the same way.
        flips: mirror each case with a probability of one half.
        positive: bool array, whether case `i` has a pneumothorax; needed for `share`.
        share: of the positives in the epoch, 0 to 1; None: each row occurs once. Positives and
            healthy cases are drawn in turns, so that none comes up twice before all of its
            kind came up once. A kind that is missing is not asked for.

    Returns:
        `(n,)` int array; `~i` is `-1 - i`, so that what is below 0 is mirrored.
    """
    rng = np.random.default_rng([seed, epoch])
    if share is not None:
        kinds = [rows[positive[rows]], rows[~positive[rows]]]
        share = 0 if not kinds[0].size else 1 if not kinds[1].size else share
        count = round(share * len(rows))
        kinds = zip(kinds, (count, len(rows) - count), strict=True)
        rows = np.concatenate([_in_turns(kind, wanted, rng) for kind, wanted in kinds])
    order = rng.permutation(rows)
    return np.where(rng.random(len(order)) < 0.5, ~order, order) if flips else order


def share_at(epoch, epochs, positive_share):
    """Share of positives in an epoch: from the first value to the second in even steps.

    Args:
        epoch: 1 to `epochs`.
        epochs: how many there are.
        positive_share: `(from, to)`, each 0 to 1; None: as they come.

    Raises:
        ValueError: for any other `positive_share`.
    """
    if positive_share is None:
        return None
    if np.shape(positive_share) != (2,) or not all(0 <= share <= 1 for share in positive_share):
        raise ValueError(
            "`positive_share` must be two shares from 0 to 1, in the first and the last epoch, "
            f"or None. Received: positive_share={positive_share!r}"
        )
    first, last = positive_share
    return first + (last - first) * (epoch - 1) / max(epochs - 1, 1)


def _in_turns(rows, count, rng):
    """`count` of `rows`, each permutation of all of them used up before the next begins."""
    rounds = [rng.permutation(rows) for _ in range(-(-count // max(len(rows), 1)))]
    return np.concatenate([rows[:0], *rounds])[:count]


def read_blocks(inputs, masks, rows, batch_size, *, flipped=None):
    """Blocks of many batches, the next one read from disk while the last one trains.

    Args:
        inputs: `(n, ...)`, array or memory map.
        masks: `(n, height, width)`, array or memory map.
        rows: `(m,)` int array, which cases and in which order; `~i` is case i mirrored.
        batch_size: cases in a batch.
        flipped: like `inputs`, of the mirrored images; needed where a row is below 0.

    Yields:
        `[inputs, masks]` of the shape `(steps, batch, ...)`, in memory; the last block is one
        smaller batch if the batches do not come out even.
    """
    whole = len(rows) - len(rows) % batch_size
    batch_bytes = batch_size * (inputs.nbytes // len(inputs) + masks.nbytes // len(masks))
    length = batch_size * max(1, min(_CHUNK, _BLOCK // batch_bytes))
    blocks = [rows[i : min(i + length, whole)] for i in range(0, whole, length)]
    blocks += [rows[whole:]] if whole < len(rows) else []

    def read(block):
        mirrored = block < 0
        cases = np.where(mirrored, ~block, block)
        x, y = inputs[cases], masks[cases]
        if mirrored.any():
            x[mirrored] = flipped[cases[mirrored]]
            y[mirrored] = y[mirrored, :, ::-1]
        steps = (-1, min(batch_size, len(block)))
        return [array.reshape(*steps, *array.shape[1:]) for array in (x, y)]

    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(read, blocks[0])
        for block in blocks[1:]:
            ready, coming = coming.result(), reader.submit(read, block)
            yield ready
        yield coming.result()
