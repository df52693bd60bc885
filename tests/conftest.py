"""Test-wide settings: one OpenMP thread, and shape annotations that are checked while the tests run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two threads on a busy machine are 40 times slower

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["smc", "surrogate", "oracles", "bbo"], "beartype.beartype")
