"""Share of a batch that one of several replicas computes, and its random numbers."""

from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

_share = ContextVar("share", default=None)


class Share(NamedTuple):
    """The images of a batch that one of several replicas computes, see `share_of()`."""

    first: int
    stop: int
    images: int  # of the whole batch
    weight: float  # of what is computed: below 1 where all replicas compute the same


def share_of(images, *, replicas, number):
    """Share of replica `number` of a batch of so many `images`: in turn, as even as can be.

    A last batch of fewer images than replicas is computed by each of them: an empty share has
    no mean, and stops layers that reshape.
    """
    if images < replicas:
        return Share(0, images, images, 1 / replicas)
    first, stop = (images * n // replicas for n in (number, number + 1))
    return Share(first, stop, images, 1.0)


@contextmanager
def sharing(share):
    """Inside the block `current_share()` is `share`; None, as outside: the whole batch."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def current_share():
    """`Share` of the replica that is being traced; None where there is but one."""
    return _share.get()


def draw_for_batch(draw, images):
    """`draw(n)` for the `n` images of the whole batch, cut to this replica's own `images`.

    Random numbers then do not depend on the number of replicas.
    """
    share = current_share()
    return draw(images) if share is None else draw(share.images)[share.first : share.stop]
