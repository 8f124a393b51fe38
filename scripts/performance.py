# SPDX-License-Identifier: Apache-2.0
"""What the scripts that fill in tables of speed share: runs of quern bench, the machine, tables."""
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/performance.md"


def bench(arguments, program="build/quern"):
    """What `quern bench` prints as JSON; the arguments are printed first, its errors end the program."""
    command = [str(program), "bench", *arguments, "--json"]
    print(shlex.join(command), file=sys.stderr)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    result = json.loads(done.stdout)
    for key in ("prompt_tokens_per_second", "generated_tokens_per_second"):
        if key in result:
            print(f"  {key}: {result[key]:.2f}", file=sys.stderr)
    return result


def machine():
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = {key: value for key, value in re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.M)}
    features = [name for flag, name in [("avx512f", "AVX-512"), ("avx512_vnni", "VNNI"), ("amx_tile", "AMX")]
                if flag in found.get("flags", "").split()]
    return (f"{found.get('model name', platform.machine())} (family {found.get('cpu family', '?')}, model "
            f"{found.get('model', '?')}), {os.cpu_count()} cores, {', '.join(features) or 'no AVX-512'}")


def about(load, run):
    """The line above the tables: the load average is that of the beginning, `run` any of a model."""
    return (f"Machine: {machine()}; {run['threads']} threads, kernels {run['isa']}. Load average when the runs began: "
            f"{load:.1f}; it counts other programs' threads.")


def table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def limits(runs, n_threads):
    """Table of the machine's limits: the best of all runs, limit by limit."""
    rows = []
    for key, unit in [("read_gb_per_second", "GB/s"), ("copy_gb_per_second", "GB/s"), ("peak_gop_per_second", "Gop/s")]:
        first = runs[0]["roofline"][key]
        for name in first if key.startswith("peak") else [None]:
            found = [run["roofline"][key] if name is None else run["roofline"][key][name] for run in runs]
            rows.append([name or key.split("_")[0]] + [f"{max(f[n] for f in found):.0f} {unit}"
                                                       for n in ("one_thread", "all_threads")])
    return table(["limit", "one thread", f"{n_threads} threads"], rows)


def write(script, lines, page=PAGE):
    """Puts the lines between the markers of the script in the page."""
    start, end = f"<!-- made by scripts/{script} -->", "<!-- end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    if not found or end not in rest:
        sys.exit(f"{page}: no line '{start}' with a line '{end}' after it")
    text = "\n".join([start, "", *lines, "", end])
    page.write_text(before + text + rest.partition(end)[2], encoding="utf-8")
