# SPDX-License-Identifier: Apache-2.0
"""scripts/imitate_outliers on the bundled model and on small ones made here."""

import json
import math
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "imitate_outliers"
TINY = ROOT / "models" / "tiny"
QUERN = ROOT / "build" / "quern"
WIDTH = {"BF16": 2, "F16": 2, "F32": 4}


def numbers(dtype, data):
    if dtype == "BF16":
        return [struct.unpack("<f", b"\0\0" + data[i:i + 2])[0] for i in range(0, len(data), 2)]
    n = len(data) // WIDTH[dtype]
    return list(struct.unpack(f"<{n}{'e' if dtype == 'F16' else 'f'}", data))


def read_model(folder):
    """name -> (shape, numbers)."""
    data = (folder / "model.safetensors").read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    found = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = entry["shape"], numbers(entry["dtype"], data[8 + size + begin:8 + size + end])
    return found


def write_model(folder, config, shapes, dtype, largest=1.0):
    rng, header, body = random.Random(1), {}, b""
    for name, shape in shapes.items():
        values = [rng.uniform(0.25, 1) * largest for _ in range(math.prod(shape))]
        if dtype == "BF16":
            data = b"".join(struct.pack("<f", v)[2:] for v in values)
        else:
            data = struct.pack(f"<{len(values)}{'e' if dtype == 'F16' else 'f'}", *values)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    (folder / "config.json").write_text(json.dumps(config))


def mixture(with_bias=True):
    config = {"model_type": "mixtral", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 3, "num_hidden_layers": 2}
    shapes = {"model.embed_tokens.weight": [10, 8], "lm_head.weight": [10, 8], "model.norm.weight": [8]}
    for layer in range(2):
        p = f"model.layers.{layer}."
        shapes[p + "input_layernorm.weight"] = shapes[p + "post_attention_layernorm.weight"] = [8]
        for role, shape in {"q": [12, 8], "k": [6, 8], "v": [6, 8], "o": [8, 12]}.items():
            shapes[p + f"self_attn.{role}_proj.weight"] = shape
            if with_bias and role != "o":
                shapes[p + f"self_attn.{role}_proj.bias"] = shape[:1]
        shapes[p + "block_sparse_moe.gate.weight"] = [3, 8]
        for e in range(3):
            for w, shape in {"w1": [5, 8], "w2": [8, 5], "w3": [5, 8]}.items():
                shapes[p + f"block_sparse_moe.experts.{e}.{w}.weight"] = shape
    return config, shapes


def factors(before, after):
    return [b / a if a != 0 else 1.0 for a, b in zip(before, after, strict=True)]


class ImitateOutliers(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.work = pathlib.Path(self.folder.name)
        self.addCleanup(self.folder.cleanup)

    def run_script(self, model, *options, name="out"):
        out = self.work / name
        done = subprocess.run([sys.executable, SCRIPT, model, out, *options], capture_output=True, text=True)
        return done, out

    def make(self, model, *options, name="out"):
        done, out = self.run_script(model, *options, name=name)
        self.assertEqual(done.returncode, 0, done.stderr)
        return out

    def imitate(self, model, *options, name="out"):
        return read_model(model), read_model(self.make(model, *options, name=name))

    def channel_scales(self, before, after, layer, norm):
        name = f"model.layers.{layer}.{norm}.weight"
        return factors(before[name][1], after[name][1])

    def expect_columns(self, before, after, name, scales):
        """The weight's columns are those of `before` over `scales`, and nothing else of it changed."""
        (n_out, n_in), a = before[name]
        b = after[name][1]
        for i in range(n_out):
            for j in range(n_in):
                if b[i * n_in + j] * scales[j] != a[i * n_in + j]:
                    self.fail(f"{name}[{i}, {j}]: {b[i * n_in + j]} * {scales[j]} is not {a[i * n_in + j]}")

    def test_channels_cancel_between_the_gain_and_all_its_readers(self):
        before, after = self.imitate(TINY, "--channels", "3", "--neurons", "0")
        groups = {"input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                  "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"]}
        touched = set()
        for norm, readers in groups.items():
            of_layers = [self.channel_scales(before, after, layer, norm) for layer in range(6)]
            self.assertEqual(sum(s != 1 for s in of_layers[0]), 3)
            self.assertTrue(all(s in (1, 16, 32, 64) for s in of_layers[0]))
            for layer, scales in enumerate(of_layers):
                self.assertEqual(scales, of_layers[0])  # the same channels in all layers
                touched.add(f"model.layers.{layer}.{norm}.weight")
                for reader in readers:
                    name = f"model.layers.{layer}.{reader}.weight"
                    self.expect_columns(before, after, name, scales)
                    touched.add(name)
        for name in before.keys() - touched:
            self.assertEqual(before[name], after[name], name)

    def test_neurons_and_values_cancel_in_an_untied_mixture_with_biases(self):
        config, shapes = mixture()
        model = self.work / "mixture"
        for dtype in WIDTH:
            write_model(self.work / dtype, config, shapes, dtype)
            model = self.work / dtype
            before, after = self.imitate(model, "--channels", "2", "--neurons", "2", "--values", "1",
                                         "--scales", "16,32", name="out-" + dtype)
            for layer in range(2):
                p = f"model.layers.{layer}."
                mlp = self.channel_scales(before, after, layer, "post_attention_layernorm")
                self.assertEqual(sum(s != 1 for s in mlp), 2)
                self.expect_columns(before, after, p + "block_sparse_moe.gate.weight", mlp)
                for e in range(3):
                    q = p + f"block_sparse_moe.experts.{e}."
                    self.expect_columns(before, after, q + "w1.weight", mlp)
                    n_rows, n_in = shapes[q + "w3.weight"]
                    rows = []
                    for i in range(n_rows):
                        row = slice(i * n_in, (i + 1) * n_in)
                        both = factors(before[q + "w3.weight"][1][row], after[q + "w3.weight"][1][row])
                        of_row = {f * s for f, s in zip(both, mlp)}
                        self.assertEqual(len(of_row), 1)
                        rows.append(of_row.pop())
                    self.assertEqual(sum(s != 1 for s in rows), 2)
                    self.expect_columns(before, after, q + "w2.weight", rows)
                values = factors(before[p + "self_attn.v_proj.bias"][1], after[p + "self_attn.v_proj.bias"][1])
                self.assertEqual(sum(s != 1 for s in values), 2)  # one of each KV head
                heads = [values[h // 2 * 3 + j] for h in range(4) for j in range(3)]
                self.expect_columns(before, after, p + "self_attn.o_proj.weight", heads)
                self.assertEqual(before[p + "self_attn.q_proj.bias"], after[p + "self_attn.q_proj.bias"])
            for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
                self.assertEqual(before[name], after[name])

    def test_a_seed_gives_the_same_bytes(self):
        for name in ("a", "b"):
            self.make(TINY, "--seed", "5", name=name)
        self.make(TINY, "--seed", "6", name="c")
        a, b, c = ((self.work / name / "model.safetensors").read_bytes() for name in "abc")
        self.assertEqual(a, b)
        self.assertNotEqual(a, c)

    def test_what_it_cannot_do_it_refuses_and_leaves_nothing(self):
        config, shapes = mixture()
        write_model(self.work / "large", config, shapes, "F16", largest=60000)
        write_model(self.work / "gpt2", {**config, "model_type": "gpt2"}, shapes, "F16")
        incomplete = {n: s for n, s in shapes.items() if "input_layernorm" not in n}
        write_model(self.work / "incomplete", config, incomplete, "F16")
        for model, options, message in [(TINY, ["--scales", "3"], "powers of two"),
                                        (TINY, ["--channels", "1000"], "among 256 channels"),
                                        (self.work / "large", [], "not exact"),
                                        (self.work / "gpt2", [], "model type 'gpt2'"),
                                        (self.work / "incomplete", [], "no input_layernorm")]:
            done, out = self.run_script(model, "--neurons", "1", *options)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(message, done.stderr)
            self.assertFalse(out.exists())
        self.make(TINY)
        done, _ = self.run_script(TINY)
        self.assertIn("exists", done.stderr)

    @unittest.skipUnless(QUERN.exists(), "build/quern is not built")
    def test_the_function_is_the_same(self):
        ppl = []
        for model in (TINY, self.make(TINY, "--values", "2")):
            done = subprocess.run([QUERN, "eval", model, "--ctx", "64", "--windows", "4", "--json"],
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            ppl.append(json.loads(done.stdout)["ppl"])
        self.assertEqual(ppl[0], ppl[1])


if __name__ == "__main__":
    unittest.main()
