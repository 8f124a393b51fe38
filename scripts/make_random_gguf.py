#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a GGUF file of random F16 weights in the shape `tinyllama` of `quern bench --shape`, for
scripts/compare_peers: speed does not ask what the weights are.

  pip install gguf numpy
  scripts/make_random_gguf.py FILE
"""

import sys

import gguf
import numpy as np

D_MODEL, N_LAYERS, N_HEADS, N_KV_HEADS, D_FFN, N_VOCAB = 2048, 22, 32, 4, 5632, 32000
D_HEAD = D_MODEL // N_HEADS


def describe(writer):
    writer.add_context_length(2048)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(D_FFN)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_rope_dimension_count(D_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    # A vocabulary that loads: the special tokens, the bytes, then made-up words.
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    n_words = N_VOCAB - len(special)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(special + [f"word{i}" for i in range(n_words)])
    writer.add_token_scores([-float(i) for i in range(N_VOCAB)])
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * n_words)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def main():
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(sys.argv[1], "llama", use_temp_file=False)
    describe(writer)
    matrices = {"token_embd": (N_VOCAB, D_MODEL), "output": (N_VOCAB, D_MODEL)}
    norms = ["output_norm"]
    for layer in range(N_LAYERS):
        at = f"blk.{layer}."
        norms += [at + "attn_norm", at + "ffn_norm"]
        for name in ("attn_q", "attn_output"):
            matrices[at + name] = (D_MODEL, D_MODEL)
        for name in ("attn_k", "attn_v"):
            matrices[at + name] = (N_KV_HEADS * D_HEAD, D_MODEL)
        for name in ("ffn_gate", "ffn_up"):
            matrices[at + name] = (D_FFN, D_MODEL)
        matrices[at + "ffn_down"] = (D_MODEL, D_FFN)
    for name in norms:
        writer.add_tensor(name + ".weight", np.ones(D_MODEL, dtype=np.float32))
    for name, shape in matrices.items():
        weights = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        writer.add_tensor(name + ".weight", weights.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
