"""New random examples for as long as is allowed; what goes wrong is kept in a folder, with the line that repeats it.

    python tests/fuzzing/run.py --seconds 600

Kinds of examples, in turn: graphs (random CNNs through every command, run beside their source), damage (broken files),
options (values that make no sense), kills (a process that is ended at any moment). Status 1 where something is found.
"""

import argparse
import contextlib
import functools
import gc
import importlib
import inspect
import itertools
import os
import pkgutil
import shutil
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before numpy is imported
    os.environ.setdefault(threads, "1")
sys.path[:1] = [str(Path(__file__).resolve().parents[1])]  # and not this folder: its modules are those of fuzzing

import numpy as np  # noqa: E402
from fuzzing.examples import KINDS  # noqa: E402
from fuzzing.graphs import random_model  # noqa: E402
from fuzzing.isolated import isolated  # noqa: E402
from typer import main as typer_main  # noqa: E402

import onnxsep  # noqa: E402
from onnxsep.cli import app, load_commands  # noqa: E402

LONGEST = 120.0  # seconds for an example


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="stop after so long; 600 by default")
    parser.add_argument("--count", type=int, default=10**9, help="stop after so many examples")
    parser.add_argument("--seed", type=int, help="of the first example; from the clock by default")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only these kinds")
    parser.add_argument("--command", default="", help="only this command, as examples.py names them (damage: a,b,c)")
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="where findings are kept")
    given = parser.parse_args()
    first = time.time_ns() % 10**12 if given.seed is None else given.seed
    kinds = given.kind or list(KINDS)
    trains = find_spec("torch") is not None
    _warm()
    print(f"seed {first}", flush=True)
    end, tried, found = time.monotonic() + given.seconds, Counter[str](), Counter[str]()
    runs = {kind: Counter[str]() for kind in kinds}
    for number in itertools.takewhile(lambda number: number < given.count, itertools.count()):
        if time.monotonic() > end:
            break
        kind, seed = kinds[number % len(kinds)], first + number // len(kinds)
        tried[kind] += 1
        wrong, ran = _tried(kind, seed, given.command, given.found, torch=trains)
        runs[kind].update(ran)
        if wrong:
            found[kind] += 1
            print(f"{kind} {seed}: {wrong.splitlines()[0][:300]}", flush=True)
    for kind in kinds:
        each = ", ".join(f"{name} {count:,}" for name, count in sorted(runs[kind].items()))
        print(f"{kind}: {tried[kind]:,} tried, {runs[kind].total():,} commands ({each}), {found[kind]} wrong")
    sys.exit(1 if found else 0)


def _warm() -> None:
    """Import once what each child would import anew, as a first child tells, and build the command line once."""
    for module in pkgutil.walk_packages(onnxsep.__path__, "onnxsep."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # what needs torch, where there is none
                importlib.import_module(module.name)
    trains = find_spec("torch") is not None
    for command in ("fitted", "prune", "qdq", "qoperator", *["finetune"] * trains):
        with tempfile.TemporaryDirectory(prefix="onnxsep-fuzz-") as folder:
            isolated(functools.partial(_imports, command), Path(folder), LONGEST)
            names = Path(folder, "modules.txt")
            for name in names.read_text().split() if names.exists() else []:
                with contextlib.suppress(Exception):  # a module may be there under another name
                    importlib.import_module(name)
    typer_main.get_command = functools.cache(typer_main.get_command)
    load_commands()
    typer_main.get_command(app)
    for seed in range(3):  # fills caches, of schemas for one; no sessions, whose threads a child would not have
        model, _ = random_model(np.random.default_rng(seed))
        onnxsep.inspect(model)
        onnxsep.rewrite(model, mode="spatial", verify="none")
        onnxsep.prune(model, sparsity=0.5, verify="none")
    gc.freeze()  # so that children do not copy what they only read


def _imports(command: str) -> None:
    KINDS["graphs"](0, command)
    Path("modules.txt").write_text("\n".join(sys.modules))


def _tried(kind: str, seed: int, command: str, kept: Path, *, torch: bool) -> tuple[str, list[str]]:
    """What is wrong with an example, of which the files are kept then; and the commands that it has run."""
    function = KINDS[kind]
    takes_torch = "torch" in inspect.signature(function).parameters
    example = functools.partial(function, seed, command, **({"torch": torch} if takes_torch else {}))
    with tempfile.TemporaryDirectory(prefix="onnxsep-fuzz-") as folder:
        wrong = isolated(example, Path(folder), LONGEST)
        ran = Path(folder, "tried.txt").read_text().split() if Path(folder, "tried.txt").exists() else []
        if wrong:
            place = kept / f"{kind}-{seed}"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(folder, place, symlinks=True)
            line = f"python tests/fuzzing/run.py --kind {kind} --seed {seed} --count 1"
            (place / "again.txt").write_text(f"{line}{f' --command {command}' if command else ''}\n\n{wrong}\n")
    return wrong, ran


if __name__ == "__main__":
    main()
