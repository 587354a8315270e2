"""Run every benchmark of this folder, but for those that take long: run these in parts (`--only`)."""

import subprocess
import sys
from pathlib import Path

LONG = ("fits.py", "real.py", "paper004.py", "uniform.py", "warm_starts.py")
PARTS = ("cifar.py", "keeping.py", "pruning_course.py", "random_start.py", "uniform_networks.py")  # of others

for script in sorted(Path(__file__).parent.glob("*.py")):
    if script.name not in (Path(__file__).name, *PARTS, *LONG):
        print(f"== {script.name}", flush=True)
        subprocess.run([sys.executable, str(script)], check=True)
