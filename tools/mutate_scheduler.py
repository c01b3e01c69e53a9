#!/usr/bin/env python3
"""Plants bugs in the scheduler, one at a time, and looks which tests notice.

    python3 tools/mutate_scheduler.py [--seeds N] [--only TEXT] [--output scheduler/MUTATIONS.md]

The bugs are in scheduler/tests/mutants.txt. Each is planted in a copy of the crate in a temporary folder with its own target
folder, so the working tree is not touched. A bug is first shown to the oracles of the simulation, then to its committed totals
(a policy that got worse breaks no rule), then to the other tests. Exits with 1 when a bug is not noticed by any of them.
"""

import argparse
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CRATE = ROOT / "scheduler"
# By whom a bug can be noticed, in this order.
STAGES = [
    ("oracles", ["--test", "simulation", "thousands_of_random_days"]),
    ("totals", ["--test", "simulation", "what_the_policy_costs"]),
    ("other tests", ["--lib", "--test", "life", "--test", "fairness", "--test", "pictures", "--test", "prompt", "--test", "constraint", "--test", "accepting", "--test", "speculation", "--test", "ahead", "--test", "block_pool", "--test", "tiers"]),
]


def read_mutants():
    mutants = []
    for line in (CRATE / "tests/mutants.txt").read_text().splitlines():
        if line.startswith("# "):
            mutants.append({"name": line[2:], "file": None, "old": [], "new": []})
        elif line.startswith("@ "):
            mutants[-1]["file"] = line[2:]
        elif line.startswith("- "):
            mutants[-1]["old"].append(line[2:])
        elif line.startswith("+ "):
            mutants[-1]["new"].append(line[2:])
    return mutants


def make_workspace(folder):
    """A workspace of this crate alone: its versions, lints and profile are those of the real one."""
    manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())
    package = "\n".join(f"{key} = {quote(value)}" for key, value in manifest["workspace"]["package"].items())
    blake3 = manifest["workspace"]["dependencies"]["blake3"]
    features = ", ".join(quote(feature) for feature in blake3["features"])
    folder.joinpath("Cargo.toml").write_text(
        f"""[workspace]
resolver = "3"
members = ["scheduler"]
[workspace.package]
{package}
[workspace.dependencies]
blake3 = {{ version = {quote(blake3["version"])}, default-features = false, features = [{features}] }}
[workspace.lints.rust]
[profile.dev]
opt-level = 1
"""
    )
    shutil.copytree(CRATE, folder / "scheduler")
    shutil.copy(ROOT / "Cargo.lock", folder / "Cargo.lock")


def quote(value):
    if isinstance(value, bool):
        return str(value).lower()
    return '"' + value.replace('"', '\\"') + '"'


# Of one test binary. A bug may make it go round for ever; it never waits for anything, so processor time tells, however busy the machine is.
CPU_SECONDS = 300


def cargo_test(folder, arguments, seeds):
    environment = dict(os.environ, SEEDS=str(seeds), CARGO_TARGET_DIR=str(folder / "target"), RUST_BACKTRACE="0")
    command = ["cargo", "test", "--quiet", "--package", "scheduler", *arguments]

    def run(command, prepare=None):
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, preexec_fn=prepare)
        return result.returncode, result.stdout + result.stderr

    def limit_time():
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))

    # How long the compiler takes says nothing about the bug.
    code, output = run([*command, "--no-run"])
    if code != 0:
        return code, output
    code, output = run(command, limit_time)
    if code != 0 and re.search(r"signal: (9|24)\b", output):
        return code, f"no end within {CPU_SECONDS} s of processor time"
    return code, output


def reason(output):
    """The first thing that was noticed, and the seed that shows it."""
    lines = output.splitlines()
    panics = [index for index, line in enumerate(lines) if "panicked at" in line]
    message = lines[panics[0] + 1].strip() if panics and panics[0] + 1 < len(lines) else lines[-1] if lines else ""
    # Of a comparison, what was compared is enough; where that is not said, what came out.
    message = re.sub(r"^assertion .*? failed:? ?", "", message)
    if panics and not message:
        message = " ".join(line.strip() for line in lines[panics[0] + 2 : panics[0] + 4])
    seed = re.search(r"SEED=(\d+)", output)
    return (f"seed {seed[1]}: " if seed else "") + message[:110]


def notice(folder, mutant, seeds):
    source = folder / "scheduler/src" / mutant["file"]
    original = source.read_text()
    old, new = "\n".join(mutant["old"]), "\n".join(mutant["new"])
    if original.count(old) != 1:
        sys.exit(f"{mutant['name']}: occurs {original.count(old)} times in {mutant['file']}")
    source.write_text(original.replace(old, new))
    try:
        for stage, arguments in STAGES:
            code, output = cargo_test(folder, arguments, seeds)
            if "could not compile" in output:
                sys.exit(f"{mutant['name']}: does not compile\n{output}")
            if code != 0:
                return stage, reason(output)
        return "nobody", ""
    finally:
        source.write_text(original)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1500)
    parser.add_argument("--only", default="", help="plant only bugs whose name contains this")
    parser.add_argument("--output", type=pathlib.Path, help="write the table to this file")
    arguments = parser.parse_args()
    mutants = [mutant for mutant in read_mutants() if arguments.only in mutant["name"]]
    rows, missed = [], 0
    with tempfile.TemporaryDirectory(prefix="mutate-scheduler-") as name:
        folder = pathlib.Path(name)
        make_workspace(folder)
        for stage, test in STAGES:
            code, output = cargo_test(folder, test, arguments.seeds)
            if code != 0:
                sys.exit(f"the {stage} fail without a planted bug\n{output}")
        for mutant in mutants:
            stage, message = notice(folder, mutant, arguments.seeds)
            missed += stage == "nobody"
            rows.append((mutant["name"], stage, message))
            print(f"{stage:12} {mutant['name']} | {message}", flush=True)
    counts = ", ".join(f"{sum(row[1] == stage for row in rows)} by the {stage}" for stage, _ in STAGES)
    summary = f"{len(rows)} bugs planted, {len(rows) - missed} noticed: {counts}; {missed} missed."
    print(summary)
    if arguments.output:
        table = "".join(f"| {name} | {stage} | {message.replace('|', chr(92) + '|')} |\n" for name, stage, message in rows)
        arguments.output.write_text(
            "# Planted bugs, and who notices them\n\n"
            f"Written by `tools/mutate_scheduler.py --seeds {arguments.seeds}`. {summary}\n\n"
            "Oracles and totals are those of `tests/simulation/`. A bug marked (policy) breaks no promise about results; it makes\n"
            "the day slower or less fair.\n\n"
            f"| Bug | Noticed by | How |\n|---|---|---|\n{table}"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
