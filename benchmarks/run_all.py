"""Run every benchmark of this folder, but for fits.py and real.py, which take hours: run those in parts (`--only`)."""

import subprocess
import sys
from pathlib import Path

for script in sorted(Path(__file__).parent.glob("*.py")):
    if script.name not in (Path(__file__).name, "cifar.py", "fits.py", "real.py"):  # cifar.py only reads data
        print(f"== {script.name}", flush=True)
        subprocess.run([sys.executable, str(script)], check=True)
