#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/fixtures: tiny random models with the logits that transformers gives them.

A developer's tool, needed only to add or change a fixture:

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors numpy
    venv/bin/python scripts/make_fixtures.py [NAME ...]

Each fixture is a Hugging Face directory (config.json, model.safetensors) with golden.json:
{"ids": [...], "logits": [[...] per position]}, six decimals, computed in float32 with eager
attention from the directory as written. Weights are drawn so that every part matters: matrices of
unit gain, norm gains 1 +- 0.3, all biases non-zero. Sizes are chosen odd on purpose: heads that do
not divide d_model, vocabularies that no vector width divides, d_ffn with every kind of Hadamard
size (2^k, 12 * 2^k, 20 * 2^k, 28 * 2^k, 44) and one with none (46).
"""

import json
import math
import pathlib
import sys

import torch
import transformers as tf

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "fixtures"

# Every decoder below takes these; the names are translated for GPT-2 and OPT.
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=128,
             max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=None)


def rope(kind="default", **kwargs):
    return dict(rope_type=kind, rope_theta=kwargs.pop("theta", 1000.0), **kwargs)


def factors(n, low, high):
    return [round(low + (high - low) * i / max(1, n - 1), 4) for i in range(n)]


# name -> (config class, arguments, options); options: dtype, length, legacy (config.json with
# rope_theta, rope_scaling and torch_dtype instead of rope_parameters and dtype).
FIXTURES = {
    "llama": (tf.LlamaConfig, dict(intermediate_size=48, num_key_value_heads=2,
              tie_word_embeddings=True, rope_parameters=rope()), dict(dtype="bfloat16")),
    "llama-untied": (tf.LlamaConfig, dict(hidden_size=48, intermediate_size=44,
                     num_attention_heads=6, num_key_value_heads=3, head_dim=10, vocab_size=123,
                     attention_bias=True, mlp_bias=True, eos_token_id=[2, 5, 7],
                     rope_parameters=rope()), {}),
    "llama-llama3": (tf.LlamaConfig, dict(hidden_size=24, intermediate_size=80,
                     num_attention_heads=6, num_key_value_heads=2, head_dim=16, vocab_size=97,
                     rope_parameters=rope("llama3", factor=8.0, low_freq_factor=1.0,
                                          high_freq_factor=4.0,
                                          original_max_position_embeddings=32)),
                     dict(legacy=True)),
    "llama-linear": (tf.LlamaConfig, dict(intermediate_size=56, num_key_value_heads=4,
                     tie_word_embeddings=True, rope_parameters=rope("linear", factor=4.0)),
                     dict(dtype="bfloat16")),
    "llama-yarn": (tf.LlamaConfig, dict(hidden_size=48, intermediate_size=46,
                   num_attention_heads=3, num_key_value_heads=1, head_dim=16,
                   rope_parameters=rope("yarn", factor=4.0, beta_fast=4.0, beta_slow=0.5,
                                        original_max_position_embeddings=16)), {}),
    "mistral": (tf.MistralConfig, dict(intermediate_size=64, num_key_value_heads=2,
                sliding_window=7, rope_parameters=rope()), dict(dtype="float16", legacy=True)),
    "qwen2": (tf.Qwen2Config, dict(intermediate_size=48, num_key_value_heads=2,
              use_sliding_window=True, sliding_window=6, max_window_layers=1,
              tie_word_embeddings=True, rope_parameters=rope()), {}),
    "qwen3": (tf.Qwen3Config, dict(intermediate_size=96, num_key_value_heads=2, head_dim=12,
              vocab_size=111, rope_parameters=rope()), dict(dtype="bfloat16")),
    "qwen2_moe": (tf.Qwen2MoeConfig, dict(intermediate_size=40, moe_intermediate_size=20,
                  shared_expert_intermediate_size=28, num_experts=5, num_experts_per_tok=2,
                  norm_topk_prob=False, num_key_value_heads=4, vocab_size=96,
                  rope_parameters=rope()), dict(dtype="bfloat16")),
    "qwen3_moe": (tf.Qwen3MoeConfig, dict(intermediate_size=44, moe_intermediate_size=24,
                  num_experts=6, num_experts_per_tok=3, norm_topk_prob=True, head_dim=8,
                  num_key_value_heads=2, vocab_size=96, mlp_only_layers=[0],
                  rope_parameters=rope()), dict(dtype="bfloat16")),
    "qwen3_moe-raw": (tf.Qwen3MoeConfig, dict(intermediate_size=44, moe_intermediate_size=12,
                      num_experts=4, num_experts_per_tok=2, norm_topk_prob=False, head_dim=8,
                      num_key_value_heads=2, vocab_size=96, rope_parameters=rope()),
                      dict(dtype="bfloat16", legacy=True)),
    "mixtral": (tf.MixtralConfig, dict(intermediate_size=28, num_local_experts=4,
                num_experts_per_tok=2, num_key_value_heads=2, vocab_size=96,
                rope_parameters=rope()), dict(dtype="bfloat16")),
    # longrope with the short factors in use, then with the long ones
    "phi3": (tf.Phi3Config, dict(hidden_size=48, intermediate_size=48, num_attention_heads=6,
             num_key_value_heads=2, vocab_size=123, max_position_embeddings=256,
             original_max_position_embeddings=64, sliding_window=11,
             rope_parameters=rope("longrope", short_factor=factors(4, 1.0, 1.5),
                                  long_factor=factors(4, 1.0, 8.0))), dict(dtype="bfloat16")),
    "phi3-long": (tf.Phi3Config, dict(hidden_size=48, intermediate_size=44,
                  num_attention_heads=3, num_key_value_heads=3, tie_word_embeddings=True,
                  original_max_position_embeddings=16, rope_parameters=rope(
                      "longrope", partial_rotary_factor=0.75, short_factor=factors(6, 1.0, 1.5),
                      long_factor=factors(6, 1.0, 4.0))), dict(legacy=True)),
    "gemma2": (tf.Gemma2Config, dict(num_hidden_layers=3, intermediate_size=40,
               num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=10, sliding_window=9,
               attn_logit_softcapping=2.5, final_logit_softcapping=4.0, vocab_size=99,
               rope_parameters=rope()), dict(dtype="bfloat16")),
    "gpt2": (tf.GPT2Config, dict(hidden_size=48, vocab_size=123, max_position_embeddings=40),
             {}),
    "opt": (tf.OPTConfig, dict(ffn_dim=96, vocab_size=100, max_position_embeddings=40,
            pad_token_id=1), dict(dtype="float16")),
    "gpt_neox": (tf.GPTNeoXConfig, dict(num_attention_heads=2, intermediate_size=128,
                 vocab_size=101, rope_parameters=rope(partial_rotary_factor=0.25)), {}),
    "gpt_neox-serial": (tf.GPTNeoXConfig, dict(hidden_size=40, num_attention_heads=5,
                        intermediate_size=80, use_parallel_residual=False, vocab_size=96,
                        hidden_act="gelu_new",
                        rope_parameters=rope(partial_rotary_factor=0.5)),
                        dict(dtype="bfloat16", legacy=True)),
}


def randomise(model, generator):
    """Unit-gain matrices, gains 1 +- 0.3 (Gemma stores gain - 1), biases 0.2."""
    zero_centred = "Gemma" in type(model).__name__
    conv1d = isinstance(model, tf.GPT2LMHeadModel)
    for name, p in model.named_parameters():
        draw = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:
            gain = name.endswith("weight")
            p.data = draw * 0.3 + (1 if gain and not zero_centred else 0) if gain else draw * 0.2
            continue
        embedding = any(part in name for part in ("embed_tokens", "embed_positions", "embed_in",
                                                  "wte", "wpe"))
        n_in = p.shape[-2] if conv1d and not embedding else p.shape[-1]
        p.data = draw * (0.5 if embedding else 1 / math.sqrt(n_in))


def to_legacy(config):
    """config.json as releases before rope_parameters wrote it."""
    parameters = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    theta = parameters.pop("rope_theta")
    partial = parameters.pop("partial_rotary_factor", None)
    if config["model_type"] == "gpt_neox":
        config["rotary_emb_base"], config["rotary_pct"] = theta, partial
    else:
        config["rope_theta"] = theta
        if partial is not None:
            config["partial_rotary_factor"] = partial
    kind = parameters.pop("rope_type")
    if config["model_type"] == "phi3":
        parameters.pop("original_max_position_embeddings", None)
    config["rope_scaling"] = None if kind == "default" else dict(parameters, type=kind)


def make(name, index):
    cls, arguments, options = FIXTURES[name]
    config = cls(**{**SIZES, **arguments})
    generator = torch.Generator().manual_seed(1000 + index)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model, generator)
    directory = ROOT / name
    directory.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, options.get("dtype", "float32"))
    model.to(dtype).save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    written = json.loads((directory / "config.json").read_text())
    written.pop("transformers_version", None)
    if options.get("legacy"):
        to_legacy(written)
    (directory / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")

    model = tf.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(0, config.vocab_size, (1, options.get("length", 32)), generator=generator)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    rows = ",\n".join("[" + ",".join(f"{v:.6f}" for v in row) + "]" for row in logits.tolist())
    (directory / "golden.json").write_text(
        f'{{"ids": {json.dumps(ids[0].tolist())},\n"logits": [\n{rows}]}}\n')
    size = sum(file.stat().st_size for file in directory.iterdir())
    print(f"{name:16} {size / 1024:7.1f} KiB, logits {logits.std():.2f} sd, "
          f"{logits.abs().max():.2f} max")


def main():
    for index, name in enumerate(FIXTURES):
        if len(sys.argv) == 1 or name in sys.argv[1:]:
            make(name, index)


main()
