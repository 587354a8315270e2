"""Times a model and pieces of it on this device.

    python measure.py [--provider NAME] [--threads N] [--out FILE]

Needs Python 3.9 or newer, onnxruntime and numpy, and nothing else; no network. What was measured is written after each
piece, so that the same command goes on after Ctrl-C. `onnxsep profile` writes this script into a kit.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxsep.running.timing import PIECES, SHARES, THOROUGH, clock_for, measure_times, processor

TOGETHER = 5  # forms that take turns with their piece
CPU = "CPUExecutionProvider"
UNSURE = 0.1  # relative standard error of what ran too rarely for one


class Wrong(Exception):  # noqa: N818 - one line for the user
    """What the user has to put right."""


class Device:
    """How models are run here."""

    def __init__(self, provider: str, threads: int) -> None:
        available = ort.get_available_providers()
        if provider not in available:
            raise Wrong(f"the provider {provider!r} is not there; this onnxruntime has: {', '.join(available)}")
        self.provider, self.threads = provider, threads
        self.clock = clock_for(threads, on_cpu=provider == CPU)

    @property
    def machine(self) -> dict[str, Any]:
        """What the times hold for."""
        return {
            "runtime": ort.__version__,
            "provider": self.provider,
            "threads": self.threads,
            "processor": processor(),
            "system": platform.system(),
        }

    def session(self, path: Path, *, profile: str = "") -> Any:
        """A model, loaded."""
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        if self.threads:
            settings.intra_op_num_threads, settings.inter_op_num_threads = self.threads, 1
        if profile:
            settings.enable_profiling, settings.profile_file_prefix = True, profile
        providers = list(dict.fromkeys((self.provider, CPU)))
        session = ort.InferenceSession(str(path), settings, providers=providers, enable_fallback=0)
        if self.provider not in session.get_providers():
            raise Wrong(f"the provider {self.provider} could not be started on this device")
        return session

    def call(self, path: Path, feeds: Mapping[str, Any]) -> Callable[[Any], Any]:
        """What runs a model once; it ran once."""
        session = self.session(path)
        names = [value.name for value in session.get_outputs()]
        session.run(names, feeds)
        return lambda _: session.run(names, feeds)

    def on_cpu(self, path: Path, feeds: Mapping[str, Any]) -> dict[str, int]:
        """The nodes that the provider leaves to the CPU, by operator."""
        if self.provider == CPU:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            session = self.session(path, profile=str(Path(folder, "run")))
            session.run(None, feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        found = {
            event["name"]: str(event["args"].get("op_name"))
            for event in events
            if event.get("cat") == "Node" and event.get("args", {}).get("provider") == CPU
        }
        return dict(Counter(found.values()))


class Kit:
    """What is to be timed, and what was."""

    def __init__(self, folder: Path, out: Path, device: Device) -> None:
        self.folder, self.out, self.device = folder, out, device
        try:
            self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Wrong(f"{folder / 'manifest.json'} cannot be read ({error}): copy the whole kit") from error
        if not self.manifest.get("complete"):
            raise Wrong(f"{folder} is no complete kit: run onnxsep profile again")
        self.done = self.begun()

    def begun(self) -> dict[str, Any]:
        """What an earlier run on this device has measured; or nothing yet."""
        fresh: dict[str, Any] = {
            "kind": "onnxsep latencies",
            "schema": 1,
            "onnxsep": self.manifest["onnxsep"],
            "model": self.manifest["model"],
            **({"then": self.manifest["then"]} if "then" in self.manifest else {}),
            "times": {"machine": self.device.machine, "whole_ms": 0.0, "pieces": {}, "forms": {}},
            "on_cpu": {},
            "finished": False,
        }
        if not self.out.exists():
            return fresh
        try:
            old = json.loads(self.out.read_text(encoding="utf-8"))
            ours = old["kind"] == fresh["kind"]
        except (OSError, ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise Wrong(f"{self.out} is there and holds something else; name another file with --out")
        same = (
            all(old.get(name) == fresh.get(name) for name in ("model", "then"))
            and old.get("times", {}).get("machine") == self.device.machine
        )
        if not same:
            raise Wrong(f"{self.out} has times of another kit, provider or device; name another file with --out")
        return dict(old)

    def write(self) -> None:
        """Write what was measured, so that the file is always whole."""
        new = self.out.with_name(self.out.name + ".new")
        new.write_text(json.dumps(self.done, indent=1) + "\n", encoding="utf-8")
        new.replace(self.out)

    def run(self) -> None:
        """Time all that is not timed yet."""
        pieces, times = self.manifest["pieces"], self.done["times"]
        with np.load(self.folder / "inputs.npz", allow_pickle=False) as stored:
            inputs = {name: stored[f"arr_{number}"] for number, name in enumerate(self.manifest["inputs"])}
        if not times["pieces"]:
            self.done["on_cpu"] = self.device.on_cpu(self.folder / self.manifest["whole"], inputs)
            self.shares(pieces, inputs)
        self.say_on_cpu()
        print(f"the whole model: {times['whole_ms']:.3f} ms", flush=True)
        for number, (key, piece) in enumerate(pieces.items(), start=1):
            known = times["forms"].setdefault(key, {})
            missing = [form for form in piece["forms"] if form not in known]
            for start in range(0, len(missing), TOGETHER):
                known.update(self.forms(piece, missing[start : start + TOGETHER]))
                self.write()
            share = times["pieces"].get(key, {}).get("share", 0)
            print(
                f"{number} of {len(pieces)}: {piece['file']}, {share:.1%} of the model, {len(known)} forms", flush=True
            )
        self.done["finished"] = True
        self.write()

    def shares(self, pieces: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        """Time the pieces as they are beside the whole model."""
        whole = self.call(self.manifest["whole"], inputs)
        if whole is None:
            raise Wrong("the model itself does not run here, so there is nothing to compare with")
        tried = {key: self.call(one["file"], feeds_of(one)) for key, one in pieces.items()}
        calls = {key: call for key, call in tried.items() if call is not None}
        timed = measure_times([whole, *calls.values()], [{}], None, None, SHARES, self.device.clock)
        self.done["times"]["whole_ms"] = timed[0].figure * 1000
        if "original" in self.manifest:
            self.done["times"]["original_ms"] = timed[0].figure * 1000 * self.slower(whole, inputs)
        for key, one in zip(calls, timed[1:]):  # noqa: B905 - Python 3.9
            share, error = ratio_of(one)
            self.done["times"]["pieces"][key] = {"ms": one.figure * 1000, "share": share, "error": error}
        self.write()

    def slower(self, whole: Callable[[Any], Any], inputs: Mapping[str, Any]) -> float:
        """How many times as long the model takes from which the whole one was made by quantising."""
        original = self.call(self.manifest["original"], inputs)
        if original is None:
            raise Wrong(
                "the model itself does not run here before it is quantised, so there is nothing to compare with"
            )
        timed = measure_times([whole, original], [{}], None, None, THOROUGH, self.device.clock)
        return ratio_of(timed[1])[0]

    def forms(self, piece: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
        """Time some forms of a piece beside it."""
        feeds, found = feeds_of(piece), dict[str, Any]()
        tried = {key: self.call(piece["forms"][key]["file"], feeds) for key in keys}
        calls = {key: call for key, call in tried.items() if call is not None}
        as_it_is = self.call(piece["file"], feeds) if calls else None
        if as_it_is is None:
            return found
        timed = measure_times([as_it_is, *calls.values()], [{}], None, None, PIECES, self.device.clock)
        for key, one in zip(calls, timed[1:]):  # noqa: B905 - Python 3.9
            ratio, error = ratio_of(one)
            found[key] = {"ms": one.figure * 1000, "ratio": ratio, "error": error}
        return found

    def call(self, file: str, feeds: Mapping[str, Any]) -> Callable[[Any], Any] | None:
        """What runs a model of the kit; None, and a line, where it does not run here."""
        try:
            return self.device.call(self.folder / file, feeds)
        except Wrong:
            raise
        except Exception as error:  # the runtime raises a dozen unrelated classes
            print(f"{file} does not run here, and is left out: {' '.join(str(error).split())[:200]}", flush=True)
            return None

    def say_on_cpu(self) -> None:
        """Print what the provider does not run."""
        if self.device.provider != CPU:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.done["on_cpu"].items()))
            print(f"left to the CPU by {self.device.provider}: {kinds or 'nothing'}", flush=True)


def feeds_of(piece: Mapping[str, Any]) -> dict[str, Any]:
    """Random inputs of a piece."""
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal(shape, np.float32).astype(kind) for name, (kind, shape) in piece["inputs"].items()
    }


def ratio_of(timed: Any) -> tuple[float, float]:
    """A ratio to the first and its standard error."""
    found = timed.against_first
    return found.value, found.value * UNSURE if found.standard_error is None else found.standard_error


def main(arguments: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--provider", default=CPU, help="execution provider of ONNX Runtime")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to the runtime")
    parser.add_argument("--out", type=Path, default=Path("latency.json"), help="where the latencies are written")
    given = parser.parse_args(arguments)
    try:
        if given.threads < 0:
            raise Wrong("--threads must be 0 (the runtime's choice) or more")
        kit = Kit(folder or Path(__file__).resolve().parent, given.out, Device(given.provider, given.threads))
        kit.run()
    except Wrong as error:
        print(f"measure.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"measure.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\nmeasure.py: interrupted; what was measured is in {given.out}, the same command goes on", file=sys.stderr
        )
        return 130
    print(f"wrote {given.out}: give it to onnxsep plan --latency-from", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
