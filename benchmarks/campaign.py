"""A campaign against this program that anyone can repeat: mutated inputs, killed runs, full disks, hostile clients.

    python benchmarks/campaign.py --seed N --minutes M [--only KIND…] [--out DIR]      # resumes where an earlier run stopped
    python benchmarks/campaign.py --replay KIND:INDEX|FILE [--only KIND] [--out DIR]    # one input again
    python benchmarks/campaign.py --seed N --results [--out DIR]                        # its table into results/

benchmarks/campaign/__init__.py says how it is organised.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # this checkout's packages, whatever is installed

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ.pop("PYTHONUNBUFFERED", None)  # users have buffers, which may be flushed too late
    from benchmarks.campaign.command import main

    sys.exit(main())
