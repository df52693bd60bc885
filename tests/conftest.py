"""Test-wide settings: one OpenMP thread, and shape annotations that are checked while the tests run."""

import os

# Before torch is imported: two threads on a busy machine are 40 times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook(["smc", "surrogate", "oracles", "bbo"], "beartype.beartype")
