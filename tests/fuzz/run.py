"""`make fuzz`: every fuzz target for its share of the time, each in a process of its own.

    python -m tests.fuzz.run --minutes 10 [--target NAME ...] [--seed N] [--engine atheris|mutations] [--keep]

Coverage-guided where atheris is installed (`pip install pyvmm[fuzz]`), else seeded mutations of the corpus. An input
that a target does not survive is saved in tests/fuzz/corpus/NAME/crash-HASH, which pytest replays from then on. The
same seed gives the same inputs in the same order; how many of them, the time decides.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

Target = Callable[[bytes], None]

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
GROWN = HERE.parents[1] / ".fuzz"
"""What coverage-guided runs found worth keeping on this machine; `--keep` takes the small ones into the corpus."""

ARTIFACTS = GROWN / "artifacts"

SLOW = 10
"""Seconds for one input, after which it is a finding."""

MEMORY_MIB = 2048
LONGEST = 2048
KEEP_BYTES, KEEP_FILES = 300, 40
GRACE = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a target's time came to."""

    name: str
    seconds: float
    inputs: int
    finding: str  # the last lines of its output, empty if there is none
    saved: Path | None = None


def corpus_of(name: str) -> Path:
    return CORPUS / name


def start(name: str, target: Target, engine: str, seconds: float, seed: int, output: Path) -> int:
    """Fork a process that fuzzes one target, its output in a file; the pid. What it imported is imported once."""
    grown = GROWN / name
    grown.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # pytest has others
        folders = [path for path in (grown, corpus_of(name)) if path.is_dir()]
        artifact = f"{ARTIFACTS}/{name}-"
        if engine == "atheris":
            _guided(target, folders, seconds, seed, artifact)
        else:
            from tests.fuzz.mutations import fuzz

            fuzz(
                name, target, folders, seconds=seconds, seed=seed, artifact=artifact, slow=SLOW, memory_mib=MEMORY_MIB
            )
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _guided(target: Target, folders: list[Path], seconds: float, seed: int, artifact: str) -> None:
    """libFuzzer, by atheris; it ends the process."""
    import atheris

    def saving(data: bytes) -> None:
        try:
            target(data)
        except BaseException:
            Path(f"{artifact}crash").write_bytes(data)  # libFuzzer keeps those that hang or take memory only
            raise

    options = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-seed={seed}",
        f"-artifact_prefix={artifact}",
        f"-timeout={SLOW}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-max_len={LONGEST}",
    ]
    atheris.Setup([sys.argv[0], *options, *map(str, folders)], saving)
    atheris.Fuzz()


def fuzz_all(targets: Mapping[str, Target], engine: str, seconds: float, seed: int, jobs: int) -> Iterator[Outcome]:
    """Fuzz each target for `seconds`, `jobs` of them at a time; the outcomes as they come."""
    waiting, running = list(targets), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            output = ARTIFACTS / f"{name}.log"
            running[start(name, targets[name], engine, seconds, seed, output)] = name, output, time.monotonic()
        time.sleep(0.05)
        for pid, (name, output, began) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            took = time.monotonic() - began
            if not ended and took > seconds + GRACE:
                os.kill(pid, signal.SIGKILL)
                ended, status = os.waitpid(pid, 0)
            if ended:
                del running[pid]
                text = output.read_text(errors="replace")
                finding = "\n".join(text.strip().splitlines()[-30:]) or f"status {status}"
                saved = _save(name) if status else None
                yield Outcome(name, took, _inputs(text), finding if status else "", saved)


def _inputs(output: str) -> int:
    """`Done 1234 runs in 5 second(s)`, which both engines print."""
    for line in reversed(output.splitlines()):
        words = line.split()
        if words[:1] == ["Done"] and len(words) > 2:
            return int(words[1])
    return 0


def _save(name: str) -> Path | None:
    """Move the input that ended the target into its corpus."""
    found = sorted(ARTIFACTS.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
    if not found:
        return None
    data = found[-1].read_bytes()
    for path in found:
        path.unlink()
    folder = corpus_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / f"crash-{sha256(data).hexdigest()[:12]}"
    saved.write_bytes(data)
    return saved


def keep(name: str) -> int:
    """Take the smallest of what was found into the corpus; how many were new."""
    folder = corpus_of(name)
    have = {path.read_bytes() for path in folder.glob("*")}
    found = sorted((path for path in (GROWN / name).glob("*")), key=lambda path: path.stat().st_size)
    new = 0
    for path in found:
        data = path.read_bytes()
        if len(data) > KEEP_BYTES or data in have or len(have) >= KEEP_FILES:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / sha256(data).hexdigest()[:12]).write_bytes(data)
        have.add(data)
        new += 1
    return new


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz pyvmm.")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--target", action="append", help="repeatable; a prefix names several")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("atheris", "mutations"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", action="store_true", help="take small new inputs into the corpus")
    given = parser.parse_args()
    engine = given.engine or ("atheris" if find_spec("atheris") else "mutations")
    os.environ["PYVMM_STRICT"] = "1"
    targets = _targets(engine)
    wanted = given.target or [""]
    chosen = {name: target for name, target in targets.items() if any(name.startswith(each) for each in wanted)}
    if not chosen:
        print(f"no target begins with {' or '.join(wanted)}; there are {', '.join(targets)}", file=sys.stderr)
        return 2
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    jobs = max(1, min(given.jobs, len(chosen)))
    share = max(1.0, given.minutes * 60 * jobs / len(chosen) - 0.5)
    print(f"fuzz: {len(chosen)} targets, {share:.1f} s each, {jobs} at a time, engine {engine}, seed {given.seed}")
    findings = 0
    for outcome in fuzz_all(chosen, engine, share, given.seed, jobs):
        kept = f", {keep(outcome.name)} kept" if given.keep else ""
        print(f"fuzz: {outcome.name:24} {outcome.seconds:6.1f} s {outcome.inputs:9} inputs{kept}", flush=True)
        if outcome.finding:
            findings += 1
            print(f"fuzz: FINDING in {outcome.name}, input {outcome.saved or 'not saved'}\n{outcome.finding}")
    print(f"fuzz: findings: {findings}")
    return 1 if findings else 0


def _targets(engine: str) -> dict[str, Target]:
    """All targets; under atheris with what they import instrumented, which takes some seconds, once."""
    if engine == "atheris":
        import atheris

        before = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # it names each module
        try:
            with atheris.instrument_imports(include=["pyvmm", "devices", "firmware", "images"]):
                from tests.fuzz.targets import TARGETS
        finally:
            os.dup2(before, 2)
    else:
        from tests.fuzz.targets import TARGETS
    return TARGETS


if __name__ == "__main__":
    sys.exit(main())
