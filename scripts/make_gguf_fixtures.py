#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/gguf with the `gguf` package, which we did not write: files of every block type
with the values it reads from them, and tiny checkpoints converted as llama.cpp's converter does.

A developer's tool, needed only to add or change a fixture:
  pip install gguf numpy
  scripts/make_gguf_fixtures.py

Entry i (row-major) of the Hugging Face tensor `name` is
  (((crc32(name) + 2654435761 i) mod 2^32) // 256 mod 255 - 127) / 128,
exact in F16, BF16 and Q8_0, so that tests compute what they expect. Each <model>.json holds the
names and shapes of the tensors and the part of config.json that a reader has to give back.
"""

import json
import pathlib
import zlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "gguf"

# Byte offsets of the halves of a block.
HALVES = {
    Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q8_0: [0], Q.Q2_K: [80, 82],
    Q.Q3_K: [108], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208], Q.IQ4_NL: [0], Q.IQ4_XS: [0],
    Q.TQ2_0: [64], Q.MXFP4: [],
}


def write_blocks():
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(OUT / "blocks.gguf", "blocks")
    for kind, halves in HALVES.items():
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        n_rows, n_blocks = 2, 2 if block == 256 else 3
        codes = rng.integers(0, 256, (n_rows, n_blocks, n_bytes), dtype=np.uint8)
        scales = rng.normal(size=(n_rows, n_blocks)).astype(np.float16)
        scales[0, 0] = np.float16(3e-6)  # subnormal
        for i, at in enumerate(halves):
            side = (scales * (i + 1)).astype(np.float16)
            codes[..., at : at + 2] = side[..., None].view(np.uint8)
        if kind == Q.MXFP4:
            codes[..., 0] = np.array([[0, 1, 2], [126, 127, 131]])
        codes = codes.reshape(n_rows, n_blocks * n_bytes)
        writer.add_tensor(f"{kind.name}.codes", codes, raw_dtype=kind)
        values = gguf.quants.dequantize(codes, kind).astype(np.float32)
        writer.add_tensor(f"{kind.name}.values", values)
    plain = np.array([[0, -1.5, 65504, 6e-8], [1 / 3, -2e-5, 1000, 0.1]], dtype=np.float32)
    writer.add_tensor("F16.codes", plain.astype(np.float16))
    writer.add_tensor("F16.values", plain.astype(np.float16).astype(np.float32))
    bf16 = gguf.quants.quantize(plain, Q.BF16)
    writer.add_tensor("BF16.codes", bf16, raw_dtype=Q.BF16)
    writer.add_tensor("BF16.values", gguf.quants.dequantize(bf16, Q.BF16))
    writer.add_tensor("F64.codes", plain.astype(np.float64))
    writer.add_tensor("F64.values", plain)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def values(name, shape):
    i = np.arange(int(np.prod(shape)), dtype=np.uint64)
    mixed = (np.uint64(zlib.crc32(name.encode())) + np.uint64(2654435761) * i) % np.uint64(1 << 32)
    codes = (mixed // np.uint64(256) % np.uint64(255)).astype(np.int64) - 127
    return (codes / 128).astype(np.float32).reshape(shape)


def permute(weights, n_heads):
    half = weights.shape[0] // n_heads // 2
    split = weights.reshape(n_heads, 2, half, *weights.shape[1:])
    return split.swapaxes(1, 2).reshape(weights.shape)


def add_tensor(writer, name, array, kind):
    if array.ndim == 1 or name.endswith("ffn_gate_inp.weight") or kind == Q.F32:
        writer.add_tensor(name, array.astype(np.float32))
    elif kind == Q.F16:
        writer.add_tensor(name, array.astype(np.float16))
    elif kind == Q.Q8_0:  # the step is 1 / 128, so that the codes are exact
        codes = np.rint(array * 128).astype(np.int8).view(np.uint8)
        codes = codes.reshape(*array.shape[:-1], array.shape[-1] // 32, 32)
        step = np.full((*codes.shape[:-1], 1), 1 / 128, dtype=np.float16).view(np.uint8)
        blocks = np.concatenate([step, codes], axis=-1)
        writer.add_tensor(name, blocks.reshape(*array.shape[:-1], -1), raw_dtype=kind)
    else:
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)


class Model:
    """A tiny Hugging Face checkpoint: shapes by name, config, and how it converts."""

    def __init__(self, arch, config, kind=Q.F16, hidden=16, heads=4, kv_heads=2, head_dim=8, d_ffn=32):
        self.arch, self.kind = arch, kind
        self.hidden, self.heads, self.kv_heads = hidden, heads, kv_heads
        self.head_dim, self.d_ffn, self.n_layers, self.n_vocab = head_dim, d_ffn, 2, 40
        self.shapes = {}
        self.config = {
            "hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": d_ffn,
            "vocab_size": 40, "max_position_embeddings": 128, "bos_token_id": 1,
            "eos_token_id": [2, 3], "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        } | config

    def add(self, name, *shape):
        self.shapes[name] = list(shape)

    def outside(self, tied=False):
        self.add("model.embed_tokens.weight", self.n_vocab, self.hidden)
        self.add("model.norm.weight", self.hidden)
        if not tied:
            self.add("lm_head.weight", self.n_vocab, self.hidden)
        self.config["tie_word_embeddings"] = tied

    def attention(self, layer, bias=False, qk_norm=False):
        at = f"model.layers.{layer}.self_attn."
        for name, n in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
            self.add(f"{at}{name}_proj.weight", n * self.head_dim, self.hidden)
            if bias:
                self.add(f"{at}{name}_proj.bias", n * self.head_dim)
        self.add(f"{at}o_proj.weight", self.hidden, self.heads * self.head_dim)
        if bias and self.arch == "llama":
            self.add(f"{at}o_proj.bias", self.hidden)
        if qk_norm:
            self.add(f"{at}q_norm.weight", self.head_dim)
            self.add(f"{at}k_norm.weight", self.head_dim)

    def mlp(self, layer):
        at = f"model.layers.{layer}.mlp."
        self.add(f"{at}gate_proj.weight", self.d_ffn, self.hidden)
        self.add(f"{at}up_proj.weight", self.d_ffn, self.hidden)
        self.add(f"{at}down_proj.weight", self.hidden, self.d_ffn)

    def experts(self, layer, folder, n, d_ffn, gate, up, down):
        at = f"model.layers.{layer}.{folder}."
        self.add(f"{at}gate.weight", n, self.hidden)
        for e in range(n):
            self.add(f"{at}experts.{e}.{gate}.weight", d_ffn, self.hidden)
            self.add(f"{at}experts.{e}.{up}.weight", d_ffn, self.hidden)
            self.add(f"{at}experts.{e}.{down}.weight", self.hidden, d_ffn)

    def norms(self, layer, *names):
        for name in names or ("input_layernorm", "post_attention_layernorm"):
            self.add(f"model.layers.{layer}.{name}.weight", self.hidden)

    def converted(self, name, array):
        if self.arch == "llama" and ".q_proj." in name:
            return permute(array, self.heads)
        if self.arch == "llama" and ".k_proj." in name:
            return permute(array, self.kv_heads)
        if self.arch == "gemma2" and name.endswith("norm.weight"):
            return array + np.float32(1)
        if self.arch == "gpt2" and ".c_" in name and array.ndim == 2:
            return array.T.copy()
        return array

    def write(self, stem, keys=lambda writer: None, tables=None, **options):
        ids = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
        names = gguf.get_tensor_name_map(ids[self.arch], self.n_layers)
        writer = gguf.GGUFWriter(OUT / f"{stem}.gguf", self.arch, **options)
        writer.add_type("model")
        writer.add_context_length(128)
        writer.add_embedding_length(self.hidden)
        writer.add_block_count(self.n_layers)
        writer.add_feed_forward_length(self.d_ffn)
        writer.add_head_count(self.heads)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_eot_token_id(3)
        if self.arch != "gpt2":
            writer.add_head_count_kv(self.kv_heads)
            writer.add_key_length(self.head_dim)
            writer.add_value_length(self.head_dim)
            writer.add_layer_norm_rms_eps(self.config["rms_norm_eps"])
            writer.add_rope_freq_base(self.config["rope_theta"])
        keys(writer)
        for name, table in (tables or {}).items():
            writer.add_tensor(name, np.array(table, dtype=np.float32))
        stacks = {}
        for name, shape in self.shapes.items():
            array = self.converted(name, values(name, shape))
            stem_of, part = name.rsplit(".", 1)
            if ".experts." in name:
                before, after = stem_of.split(".experts.")
                stacks.setdefault(f"{before}.experts.{after.split('.')[1]}", []).append(array)
            else:
                add_tensor(writer, f"{names.get_name(stem_of)}.{part}", array, self.kind)
        for stem_of, stack in stacks.items():
            add_tensor(writer, f"{names.get_name(stem_of)}.weight", np.stack(stack), self.kind)
        finish(writer)
        expected = {"config": self.config, "tensors": self.shapes}
        (OUT / f"{stem}.json").write_text(json.dumps(expected, indent=0) + "\n")


def llama_like(arch, config, tied=False, bias=False, qk_norm=False, **sizes):
    model = Model(arch, config, **sizes)
    model.outside(tied)
    for layer in range(2):
        model.norms(layer)
        model.attention(layer, bias, qk_norm)
        model.mlp(layer)
    return model


def write_llamas():
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    plain = llama_like("llama", llama | {"rope_scaling": None, "attention_bias": True}, tied=True,
                       bias=True, kind=Q.Q8_0, hidden=32, head_dim=16)
    plain.write("llama")

    rule = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}
    scaled = llama_like("llama", llama | {"rope_theta": 500000.0, "rope_scaling": rule}, head_dim=16)
    factors = []
    for i in range(8):  # as the converter computes them
        wavelen = 2 * np.pi / (1.0 / (500000.0 ** (2 * i / 16)))
        if wavelen < 8192 / 4:
            factors.append(1)
        elif wavelen > 8192 / 1:
            factors.append(8)
        else:
            smooth = (8192 / wavelen - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 8 + smooth))
    scaled.write("llama3", tables={"rope_freqs.weight": factors})

    odd = [1, 1.5, 2.5, 4]
    rule = {"rope_type": "longrope", "short_factor": odd, "long_factor": odd,
            "attention_factor": 1.0, "original_max_position_embeddings": 128}
    llama_like("llama", llama | {"rope_scaling": rule}).write(
        "llama-factors", tables={"rope_freqs.weight": odd})

    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 7}
    llama_like("llama", mistral).write("mistral", lambda writer: writer.add_sliding_window(7))

    mixtral = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
               "num_local_experts": 3, "num_experts_per_tok": 2}
    model = Model("llama", mixtral)
    model.outside()
    for layer in range(2):
        model.norms(layer)
        model.attention(layer)
        model.experts(layer, "block_sparse_moe", 3, 32, "w1", "w3", "w2")

    def keys(writer):
        writer.add_expert_count(3)
        writer.add_expert_used_count(2)

    model.write("mixtral", keys)


def write_qwens():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_bias": True,
              "rope_scaling": yarn}

    def keys(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)

    llama_like("qwen2", config, tied=True, bias=True).write("qwen2", keys, split_max_tensors=12)

    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16",
              "rope_scaling": {"rope_type": "linear", "factor": 2.5}}

    def keys(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.5)

    llama_like("qwen3", config, qk_norm=True, kind=Q.BF16).write("qwen3", keys)

    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4,
              "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
              "norm_topk_prob": True, "mlp_only_layers": []}
    model = Model("qwen3moe", config)
    model.outside()
    for layer in range(2):
        model.norms(layer)
        model.attention(layer, qk_norm=True)
        model.experts(layer, "mlp", 4, 24, "gate_proj", "up_proj", "down_proj")

    def keys(writer):
        writer.add_expert_count(4)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(24)

    model.write("qwen3moe", keys)


def write_gemma2():
    config = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "sliding_window": 9,
              "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 2.5,
              "final_logit_softcapping": 4.0, "query_pre_attn_scalar": 8,
              "layer_types": ["sliding_attention", "full_attention"]}
    model = Model("gemma2", config, kind=Q.F32)
    model.outside(tied=True)
    for layer in range(2):
        model.norms(layer, "input_layernorm", "post_attention_layernorm",
                    "pre_feedforward_layernorm", "post_feedforward_layernorm")
        model.attention(layer)
        model.mlp(layer)

    def keys(writer):
        writer.add_sliding_window(9)
        writer.add_attn_logit_softcapping(2.5)
        writer.add_final_logit_softcapping(4.0)

    model.write("gemma2", keys)


def write_phi3():
    short, long = [1, 1.1, 1.2], [1, 2, 3.3]
    config = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": 11,
              "partial_rotary_factor": 0.75, "original_max_position_embeddings": 32,
              "rope_scaling": {"rope_type": "longrope", "short_factor": short, "long_factor": long,
                               "original_max_position_embeddings": 32}}
    model = Model("phi3", config)
    model.outside()
    for layer in range(2):
        model.norms(layer)
        at = f"model.layers.{layer}."
        model.add(f"{at}self_attn.qkv_proj.weight", (4 + 2 * 2) * 8, 16)
        model.add(f"{at}self_attn.o_proj.weight", 16, 4 * 8)
        model.add(f"{at}mlp.gate_up_proj.weight", 2 * 32, 16)
        model.add(f"{at}mlp.down_proj.weight", 16, 32)

    def keys(writer):
        writer.add_rope_dimension_count(6)
        writer.add_sliding_window(11)
        writer.add_rope_scaling_orig_ctx_len(32)
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(4) / np.log(32))))

    model.write("phi3", keys,
                {"rope_factors_long.weight": long, "rope_factors_short.weight": short})


def write_gpt2():
    model = Model("gpt2", {}, kind=Q.Q8_0, hidden=32, kv_heads=4, d_ffn=64)
    model.config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32,
                    "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 128, "vocab_size": 40,
                    "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
                    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": [2, 3]}
    model.add("transformer.wte.weight", 40, 32)
    model.add("transformer.wpe.weight", 128, 32)
    for norm in ("h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2", "ln_f"):
        model.add(f"transformer.{norm}.weight", 32)
        model.add(f"transformer.{norm}.bias", 32)
    for layer in range(2):
        at = f"transformer.h.{layer}."
        for name, n_in, n_out in (("attn.c_attn", 32, 96), ("attn.c_proj", 32, 32),
                                  ("mlp.c_fc", 32, 64), ("mlp.c_proj", 64, 32)):
            model.add(f"{at}{name}.weight", n_in, n_out)
            model.add(f"{at}{name}.bias", n_out)
    model.write("gpt2", lambda writer: writer.add_layer_norm_eps(1e-5))


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    write_blocks()
    write_llamas()
    write_qwens()
    write_gemma2()
    write_phi3()
    write_gpt2()
