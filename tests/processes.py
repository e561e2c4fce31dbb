"""Processes for tests, forked from one that has imported everything and never used a thread."""

import multiprocessing
from multiprocessing.context import ForkServerContext

PRELOADED = ["vstream.session", "vstream.models.random", "vstream.memory.store", "lmdb", "xxhash"]


def forking() -> ForkServerContext:
    """The context of all tests: the first of them starts the one fork server of a test run, and says what it holds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
