"""Makes glibc keep freed memory, which TensorFlow asks for again at every step."""

import ctypes
import sys

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_PAD_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Serves large tensors from memory this process has; returns whether it could.

    By default each tensor above 32 MiB is a mapping of its own: given back to the
    kernel when freed, mapped and zeroed page by page at the next step.  On the CPU
    that costs a share of the time of a large batch
    (tests/benchmarks/bench_allocator.py).  Call it before the first training step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = (
        # The arenas of other threads hold no more than 64 MiB in one piece.
        (_ARENA_MAX, 1),
        (_MMAP_MAX, 0),
        (_TRIM_THRESHOLD, 2**31 - 1),
        (_TOP_PAD, _PAD_BYTES),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
