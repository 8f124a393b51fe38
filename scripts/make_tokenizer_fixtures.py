#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/tokenizers: small trained tokenizers and what the references make of texts.

Needs the packages `tokenizers` and `sentencepiece`; quern itself does not. Every fixture is a
directory (tokenizer.json) or a tokenizer.model beside a cases.json:

  {"cases": [{"text": str, "ids": [int], "plain_ids": [int], "decoded": str}]}

`ids` recognise special tokens in the text, `plain_ids` do not; `decoded` is the text of `ids`
without special tokens.
"""
import json
import pathlib
import random

import sentencepiece
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "tokenizers"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog isn't amused, and they're leaving.",
    "In 1867 the city had 12345 inhabitants; by 1999 it had 1,234,567 of them (more or less).",
    "for (int i = 0; i < n; ++i) {\n\tsum += x[i] * y[i];\n}\n\nreturn sum;",
    "Führer naïve café résumé Ångström señor",
    "нещо на Български и по-русски тоже",
    "漢字とひらがなとカタカナ。中文也可以。",
    "한국어 텍스트도 있습니다",
    "emoji 😀😃 🦙 👩‍👩‍👧 ✅ and signs ½ ² €",
    "I'll we've you'd I'm he's can't they're",
    "    indented\n        more\n\n\n  and less   ",
]

TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\t\n", " \n \n",
    "Hello world", " Hello world", "Hello World!", "Hello, y'all! How are you 😁 ?",
    "ied 4 ½ months", "w048 7tuijk dsdfhu", "нещо на Български", "កាន់តែពិសេសអាចខលចេញ",
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ (only emoji)",
    "3", "33", "333", "3333", "33333", "333333", "12345678901234567890", "1,234.5e-6 ²³¼ Ⅷ ௧௨",
    "'era 'S 'LL we'Ve I'M 'ſ it's", "  leading", "trailing  ", "a  b   c    d     e",
    "x = [1,2,3];\r\n\tif (x) { return; }\r\n\r\n", "e\u0301 \u00e9 a\u030a\u0323 a\u0323\u030a",
    "\u1112\u1161\u11ab 한 \ufb01 ﬁ Ⅳ ｆｕｌｌ", "İstanbul ǅ ẞ ΑΣ", "a\u00a0b\u2003c\u3000d\u0085e\u180ef",
    "zero\u200bwidth\u200djoiner\ufeff", "漢字とひらがな 中文", "한국어텍스트", "שלום עולם مرحبا",
    "ภาษาไทยไม่มีช่องว่าง", "👩‍👩‍👧🏳️‍🌈🇩🇪", "\U0001f999\U0010ffff\U000e0041", "a\x00b\x01c\x7f",
    "<s>begin</s>", "<s><s>", "text <s> text", "<|begin|>user\n\nHi<|end|>", "<|end|", "a<unk>b",
    "[TOOL]word [TOOL] x[TOOL]y", "  [MASK]  after", "strip   [STRIP]   both", "<0x41><0xff>",
    "▁literal ▁▁ mark▁", "Day DAY day monday", "_" * 20, "-" * 33 + "=" * 17, "ab" * 40,
    "!?!?...,,,;;;", "(a)(b){c}[d]<e>", "https://example.org/a?b=c&d=%20e#f", "C:\\path\\file.txt",
    "foo_bar fooBar FOO-bar 3foo foo3", "1st 2nd 3rd", "mixed漢字and한글абв123", "\u0301\u0302 lone marks",
    "ⓐⓑ Ⓒ ªº µ", "½¼ x² H₂O", "tab\ttab\t\ttab", "line1\nline2\r\nline3\rline4", "dots…ellipsis—dash–",
    "\ufffd replacement", "a" * 100, " " * 50 + "x", "x" + "\n" * 20 + "y",
]


def random_texts(n, seed=7):
    rng = random.Random(seed)
    pools = ["abcdefgh ", "     \n\t", "0123456789", "éàüñß", "漢字中文かな", "абвгд", "😀🦙👩‍", "'.,!?<>|[]",
             "\u0301\u0323\u030a", "▁ ", "ABC ab"]
    texts = []
    for _ in range(n):
        texts.append("".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(1, 40))))
    return texts


def all_texts():
    return TEXTS + random_texts(60)


def write_cases(directory, encode, encode_plain, decode):
    cases = []
    for text in all_texts():
        ids = encode(text)
        cases.append({"text": text, "ids": ids, "plain_ids": encode_plain(text),
                      "decoded": decode(ids)})
    path = directory / "cases.json"
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
    path.write_text('{"cases":[\n' + lines + "\n]}\n")


def write_tokenizer(name, tokenizer, indent=None):
    directory = ROOT / name
    directory.mkdir(parents=True, exist_ok=True)
    content = json.loads(tokenizer.to_str())
    (directory / "tokenizer.json").write_text(
        json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")
    tokenizer = Tokenizer.from_str(json.dumps(content))

    def encode(text, plain=False):
        tokenizer.encode_special_tokens = plain
        return tokenizer.encode(text, add_special_tokens=False).ids

    write_cases(directory, encode, lambda text: encode(text, True), tokenizer.decode)


def special(text, **options):
    return AddedToken(text, special=True, normalized=False, **options)


def byte_level(vocab_size, regex, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    split = pre_tokenizers.Split(Regex(regex), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def make_llama3():
    tokenizer = byte_level(420, LLAMA3, ignore_merges=True)
    tokenizer.add_special_tokens([special("<|begin|>"), special("<|end|>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 420)])
    write_tokenizer("byte_level_llama3", tokenizer)


def make_gpt2():
    """GPT-2's own cutting, a prefix space, NFC, and every kind of added token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=380, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("Day"), AddedToken("[TOOL]", single_word=True),
                          AddedToken("[STRIP]", lstrip=True, rstrip=True)])
    tokenizer.add_special_tokens([special("[MASK]", lstrip=True), special("<s>"), special("<s><s>")])
    write_tokenizer("byte_level_gpt2", tokenizer)


def metaspace_bpe(normalizer, pre_tokenizer):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=560, show_progress=False, limit_alphabet=90,
        special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)])
    # Words are cut for training only; the model then sees whole texts.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.normalizer = None
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    content["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(content))


def make_llama2():
    tokenizer = metaspace_bpe(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)])
    write_tokenizer("metaspace_prepend", tokenizer)


def make_metaspace_first():
    tokenizer = metaspace_bpe(normalizers.Strip(left=True, right=False),
                              pre_tokenizers.Metaspace(prepend_scheme="first", split=False))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback(), decoders.Fuse()])
    write_tokenizer("metaspace_first", tokenizer)


def unigram(normalizer, pre_tokenizer, decoder, byte_fallback):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    specials = ["<unk>", "<s>", "</s>"]
    if byte_fallback:
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.UnigramTrainer(vocab_size=len(specials) + 180, show_progress=False,
                                      special_tokens=specials, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS[:4], trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    content["model"]["byte_fallback"] = byte_fallback
    return Tokenizer.from_str(json.dumps(content))


def make_unigram():
    tokenizer = unigram(normalizers.Sequence([normalizers.NFKC(),
                                              normalizers.Replace(Regex(" {2,}"), " ")]),
                        pre_tokenizers.Metaspace(), decoders.Metaspace(), False)
    write_tokenizer("unigram", tokenizer)
    tokenizer = unigram(normalizers.NFD(),
                        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(),
                                                 pre_tokenizers.Metaspace(prepend_scheme="first"),
                                                 pre_tokenizers.Digits(individual_digits=True)]),
                        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]), True)
    write_tokenizer("unigram_bytes", tokenizer)


def make_pieces():
    """Every way to cut, over a vocabulary of bytes: the ids show the pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)}
    merges = []
    for a in "abcdefgh":  # some merges, so that cuts show
        for b in "abcdefgh":
            merges.append((a, b))
    for i, (a, b) in enumerate([("Ġ", "Ġ"), ("Ġ", "a"), (".", "."), ("1", "2"), ("3", "3")] + merges):
        vocab[a + b] = len(alphabet) + i
    merges = [("Ġ", "Ġ"), ("Ġ", "a"), (".", "."), ("1", "2"), ("3", "3")] + merges
    p = pre_tokenizers
    cuts = {
        "digits": p.Digits(),
        "digits_individual": p.Digits(individual_digits=True),
        "punctuation": p.Punctuation(),
        "punctuation_removed": p.Punctuation("removed"),
        "whitespace": p.Whitespace(),
        "whitespace_split": p.WhitespaceSplit(),
        "split_removed": p.Split(" ", "removed"),
        "split_previous": p.Split(Regex(r"[ab\s]"), "merged_with_previous"),
        "split_next": p.Split(Regex(r"[ab\s]"), "merged_with_next"),
        "split_contiguous": p.Split(Regex(r"[ab\s]"), "contiguous"),
        "split_inverted": p.Split(Regex(r"\w+|\d{1,2}+"), "removed", invert=True),
        "split_empty": p.Split(Regex(r"(?=[0-9a])"), "isolated"),
        "split_word": p.Split(Regex(r"\b\w+?\b|\h+$|^[^\W\d]"), "isolated"),
    }
    for name, cut in cuts.items():
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        tokenizer.pre_tokenizer = p.Sequence([cut, p.ByteLevel(add_prefix_space=False,
                                                               use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        CUTS[name] = json.loads(tokenizer.to_str())
    directory = ROOT / "pieces"
    directory.mkdir(parents=True, exist_ok=True)
    first = next(iter(CUTS.values()))
    shared = {key: first[key] for key in ("version", "added_tokens", "normalizer", "decoder", "model")}
    (directory / "tokenizer.json").write_text(
        json.dumps(shared, ensure_ascii=False, separators=(",", ":")) + "\n")
    rows = []
    texts = TEXTS + random_texts(20, seed=11)
    for name, content in CUTS.items():
        tokenizer = Tokenizer.from_str(json.dumps(content))
        ids = [tokenizer.encode(text).ids for text in texts]
        rows.append({"name": name, "pre_tokenizer": content["pre_tokenizer"], "ids": ids})
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (directory / "cases.json").write_text(
        '{"texts":' + json.dumps(texts, separators=(",", ":")) + ',"rows":[\n' + lines + "\n]}\n")


CUTS = {}


# What a small charsmap replaces: ligatures, wide letters, signs, odd spaces, a sequence of marks.
RULES = [("FB01", "66 69"), ("2163", "49 56"), ("FF46", "66"), ("FF55", "75"), ("FF4C", "6C"),
         ("BD", "31 2044 32"), ("BC", "31 2044 34"), ("B2", "32"), ("A0", "20"), ("3000", "20"),
         ("2003", "20"), ("9", "20"), ("65 301", "E9"), ("61 30A 323", "61 323 30A"), ("2026", "2E 2E 2E"),
         ("1112 1161 11AB", "D55C"), ("200B", ""), ("FEFF", "")]


def field(data, number):
    """The bytes of the last length-delimited field `number` of a protobuf message."""
    def varint(at):
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if data[at - 1] < 128:
                return value, at
    at, found = 0, b""
    while at < len(data):
        tag, at = varint(at)
        if tag & 7 == 2:
            size, at = varint(at)
            if tag >> 3 == number:
                found = data[at:at + size]
            at += size
        elif tag & 7 == 0:
            _, at = varint(at)
        else:
            at += 8 if tag & 7 == 1 else 4
    return found


def make_charsmap():
    model = (ROOT / "spm_unigram" / "tokenizer.model").read_bytes()
    tokenizer = unigram(normalizers.Precompiled(field(field(model, 3), 2)),
                        pre_tokenizers.Metaspace(), decoders.Metaspace(), False)
    write_tokenizer("unigram_charsmap", tokenizer)


def make_sentencepiece(name, **options):
    directory = ROOT / name
    directory.mkdir(parents=True, exist_ok=True)
    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join(line for text in CORPUS for line in text.split("\n")) + "\n")
    rules = directory / "rules.tsv"
    rules.write_text("".join(f"{source}\t{target}\n" for source, target in RULES))
    if options.pop("use_rules", False):
        options["normalization_rule_tsv"] = str(rules)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(directory / "tokenizer"), minloglevel=2,
        hard_vocab_limit=False, **options)
    corpus.unlink()
    rules.unlink()
    (directory / "tokenizer.vocab").unlink()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    cases = []
    for text in all_texts():
        ids = processor.encode(text)
        # The unknown token is special, and special tokens are left out.
        known = [i for i in ids if i != processor.unk_id()]
        cases.append({"text": text, "plain_ids": ids, "decoded": processor.decode(known)})
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (directory / "cases.json").write_text('{"cases":[\n' + lines + "\n]}\n")


def main():
    make_llama3()
    make_gpt2()
    make_llama2()
    make_metaspace_first()
    make_unigram()
    make_pieces()
    make_sentencepiece("spm_bpe", model_type="bpe", vocab_size=450, byte_fallback=True,
                       normalization_rule_name="identity", remove_extra_whitespaces=False,
                       user_defined_symbols=["[TOOL]", "<|begin|>", "  "])
    make_sentencepiece("spm_unigram", model_type="unigram", vocab_size=300,
                       character_coverage=0.98, use_rules=True,
                       user_defined_symbols=["[TOOL]"])
    make_charsmap()


if __name__ == "__main__":
    main()
