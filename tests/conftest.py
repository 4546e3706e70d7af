"""Settings of the whole suite."""

import os

from hypothesis import settings

# Tests run in parallel processes: one thread each, or they wait for each other. Set before torch
# and numba are imported, and inherited by the processes that tests start.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")
