"""Waiting for what another thread or process does."""

import threading


def wait_for(holds, seconds: float = 30):
    """Waits until something is so, and fails if it does not become so."""
    tick = threading.Event()
    for _ in range(int(seconds * 100)):
        if holds():
            return
        tick.wait(0.01)
    raise AssertionError(f"did not happen within {seconds} s")
