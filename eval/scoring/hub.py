"""The Hugging Face hub, asked once whether it is there: without network its clients try for minutes."""

from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = 5.0  # seconds


@contextmanager
def offline_if_unreachable(needed: bool = True) -> Iterator[None]:
    """Put the hub's clients into offline mode, as HF_HUB_OFFLINE=1 does, while the hub cannot be reached.

    What is in the local cache is used; the rest fails at once.

    Args:
        needed: Whether anything on the hub is asked for; if not, the network is left alone.

    Yields:
        Nothing.
    """
    if not needed:
        yield
        return
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not constants.HF_HUB_OFFLINE and not _reachable(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _reachable(endpoint: str) -> bool:
    """Return whether anything answers there, asked through the hub's own client: it knows the user's proxy."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=TIMEOUT)
    except Exception:  # of DNS, TCP, TLS or proxy: each library behind the client has its own
        return False
    return True
