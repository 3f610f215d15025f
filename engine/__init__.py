"""The engine: trains, cleans, measures, detects, audits.

Threads of one CPU operation wait for each other by spinning, GNU OpenMP's for some 16 ms before they sleep. Beside anything
else that computes (a loader's workers, another run, a browser) the thread that is waited for has no core while the others
spin. So they spin for half a millisecond here, unless OMP_WAIT_POLICY or GOMP_SPINCOUNT say otherwise; set before torch is
loaded, for this process and those that it starts. What it gives: benchmarks/waiting.py.
"""

import os

SPINS = "10000"  # 1,000 lose a fifth where nothing else runs, 300,000 (the default) three quarters beside one busy process

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
