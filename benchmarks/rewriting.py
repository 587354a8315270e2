"""Time and peak memory of rewriting ResNet50V2 (94 MB), beside onnx.load + onnx.save of the same file.

    python benchmarks/rewriting.py [--runs 3]

Every figure is that of a whole process, start of the interpreter included; the runs of the commands alternate.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]

# Runs a command and prints its wall time and peak memory: that of this very child, so runs do not mix.
_MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(status)
"""
_COPY = "import onnx, sys; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"


def measure(command: list[str]) -> tuple[float, float]:
    """Wall time in seconds and peak memory in MB of one process."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, *command], capture_output=True, text=True, check=True)
    seconds, memory = done.stdout.split()
    return float(seconds), float(memory)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/resnet50v2.onnx", f"{folder}/out.onnx"
        subprocess.run([sys.executable, str(ROOT / "models" / "resnet50v2.py"), source], check=True)
        rewrite = [str(Path(sys.executable).with_name("onnxsep")), "rewrite", source, target]
        commands = {
            "onnx.load + onnx.save": [sys.executable, "-c", _COPY, source, target],
            "onnxsep rewrite --mode depthwise": [*rewrite, "--mode", "depthwise"],
            "onnxsep rewrite --mode depthwise --no-verify": [*rewrite, "--mode", "depthwise", "--no-verify"],
            "onnxsep rewrite --mode spatial": [*rewrite, "--mode", "spatial"],
            "onnxsep rewrite --mode spatial --no-verify": [*rewrite, "--mode", "spatial", "--no-verify"],
        }
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, command in commands.items():
                results[name].append(measure(command))
    base_seconds, base_memory = (median(values) for values in zip(*results["onnx.load + onnx.save"], strict=True))
    print(f"{'whole process, median of ' + str(runs):46} {'seconds':>8} {'ratio':>6} {'peak MB':>8} {'ratio':>6}")
    for name, values in results.items():
        seconds, memory = (median(column) for column in zip(*values, strict=True))
        print(f"{name:46} {seconds:8.2f} {seconds / base_seconds:6.1f} {memory:8.0f} {memory / base_memory:6.1f}")


if __name__ == "__main__":
    main()
