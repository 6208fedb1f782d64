"""Seeds: the random numbers of a step are a function of (seed, step, rank), so a resumed run draws the same ones."""

import hashlib


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for one optimizer step on one rank."""
    digest = hashlib.sha256(f"{seed}\x00{step}\x00{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
