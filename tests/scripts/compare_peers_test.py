# SPDX-License-Identifier: Apache-2.0
"""scripts/compare_peers with made-up engines, which print known speeds and note in what order they ran."""

import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "compare_peers"
FAKE = """#!{python}
import json, pathlib, sys
arguments = sys.argv[1:]
log = pathlib.Path(__file__).parent / "log"
with log.open("a") as file:
    print(*arguments, file=file)
n = log.read_text().splitlines().count(" ".join(arguments))  # which of its runs this is
def limit(value): return {{"one_thread": value, "all_threads": value}}
"""
FAKE_QUERN = FAKE + """
if "--roofline" in arguments:
    print(json.dumps({{"roofline": {{"read_gb_per_second": limit(9.0 + n), "copy_gb_per_second": limit(5.0),
                                     "peak_gop_per_second": {{"fp32_ref": limit(7.0)}}}}}}))
else:
    is_prompt = arguments[arguments.index("-n") + 1] == "0"
    print(json.dumps({{"prompt_runs": [100.0 * n if is_prompt else 1.0], "generated_runs": [] if is_prompt else [10.0 * n],
                       "weight_bytes_per_token": 1e8, "threads": 3, "isa": "avx2"}}))
"""
FAKE_PEER = FAKE + """
if "--broken" in arguments:
    sys.exit("this build is broken")
print(json.dumps([{{"n_prompt": 512, "n_gen": 0, "avg_ts": [50.0, 90.0, 60.0][n - 1]}},
                  {{"n_prompt": 0, "n_gen": 64, "avg_ts": [5.0, 9.0, 6.0][n - 1]}}]))
"""


def write_gguf(path, sizes):
    """Tensors of one dimension and a type nobody knows, each of the bytes given (multiples of 32)."""
    def string(text):
        return struct.pack("<Q", len(text)) + text.encode()
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(sizes), 3)
    header += string("general.architecture") + struct.pack("<I", 8) + string("llama")
    header += string("llama.block_count") + struct.pack("<II", 4, 1)
    header += string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("bcd")
    offset = 0
    for name, size in sizes.items():
        header += string(name) + struct.pack("<IQIQ", 1, size, 999, offset)
        offset += size
    header += bytes(-len(header) % 32)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + offset)


class ComparePeers(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)
        for name, text in [("quern", FAKE_QUERN), ("llama-bench", FAKE_PEER)]:
            (self.folder / name).write_text(text.format(python=sys.executable), encoding="utf-8")
            (self.folder / name).chmod(0o755)
        write_gguf(self.folder / "q4_0.gguf", {"token_embd.weight": 64_000_000, "blk.0.ffn_up.weight": 80_000_000,
                                               "output.weight": 120_000_000})
        write_gguf(self.folder / "tied.gguf", {"token_embd.weight": 64_000_000, "blk.0.ffn_up.weight": 16_000_000})

    def compare(self, *arguments):
        return subprocess.run([sys.executable, SCRIPT, "--quern", self.folder / "quern", "--peer",
                               f"llama.cpp={self.folder}/llama-bench", "-r", "3", "-t", "3", *arguments],
                              capture_output=True, text=True, check=False)

    def test_the_table_has_medians_and_extremes_sorted_by_bytes(self):
        ran = self.compare("--codec", "e8p", "--gguf", f"llama.cpp:{self.folder}/q4_0.gguf:-rtr 1",
                           "--gguf", f"llama.cpp:{self.folder}/tied.gguf")
        self.assertEqual(ran.returncode, 0, ran.stderr)
        rows = ran.stdout.split("| engine |")[1].splitlines()[2:]
        # GB/s is bytes times the median of the generated; the share is of the better `read`, 11 GB/s.
        self.assertEqual(rows, [
            "| llama.cpp | `tied` | 80 | 60.0 (50.0 to 90.0) | 6.00 (5.00 to 9.00) | 0.48 | 4 % |",
            "| quern | `e8p` | 100 | 200.0 (100.0 to 300.0) | 20.00 (10.00 to 30.00) | 2.00 | 18 % |",
            "| llama.cpp | `q4_0` -rtr 1 | 200 | 60.0 (50.0 to 90.0) | 6.00 (5.00 to 9.00) | 1.20 | 11 % |"])
        self.assertIn("3 threads, kernels avx2", ran.stdout)
        self.assertIn("| read | 11 GB/s | 11 GB/s |", ran.stdout)

    def test_engines_take_turns_between_two_measurements_of_the_machine(self):
        self.compare("--codec", "e8p", "--gguf", f"llama.cpp:{self.folder}/q4_0.gguf", "-p", "32", "-n", "4")
        limits = "bench --roofline -t 3 --json"
        model = "bench --shape tinyllama --codec e8p --head-codec int(8)"
        turn = [f"{model} -p 32 -n 0 -t 3 -r 1 --json", f"{model} -p 1 -n 4 -t 3 -r 1 --json",
                f"-m {self.folder}/q4_0.gguf -p 32 -n 4 -t 3 -r 1 -o json"]
        ran = (self.folder / "log").read_text(encoding="utf-8").splitlines()
        self.assertEqual(ran, [limits, *turn * 3, limits])

    def test_a_peer_that_fails_ends_the_comparison_with_what_it_said(self):
        ran = self.compare("--gguf", f"llama.cpp:{self.folder}/q4_0.gguf:--broken")
        self.assertEqual(ran.returncode, 1)
        self.assertIn("this build is broken", ran.stderr)
        self.assertIn("llama.cpp: exit code 1", ran.stderr)
        self.assertEqual(ran.stdout, "")

    def test_a_file_of_an_unknown_peer_is_refused(self):
        ran = self.compare("--gguf", f"other:{self.folder}/q4_0.gguf")
        self.assertEqual(ran.returncode, 2)
        self.assertIn("no --peer other=PROGRAM", ran.stderr)


unittest.main()
