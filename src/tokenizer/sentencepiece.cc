// SPDX-License-Identifier: Apache-2.0
// tokenizer.model, SentencePiece's protobuf. The few fields used here are read by hand: a wire
// format of tags, varints and lengths is smaller than a generated parser and its library, and
// every length is checked against the bytes that remain. Unknown fields are skipped, as protobuf
// asks.
//
//   ModelProto       1 repeated SentencePiece, 2 TrainerSpec, 3 NormalizerSpec
//   SentencePiece    1 piece, 2 score (float), 3 type
//   TrainerSpec      3 model_type, 24 treat_whitespace_as_suffix, 35 byte_fallback, 40-43 ids
//   NormalizerSpec   2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces,
//                    5 escape_whitespaces
#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "tokenizer/loaders.h"
#include "tokenizer/pipeline.h"
#include "tokenizer/utf8.h"

namespace quern::tok {
namespace {

struct Field {
  uint32_t number = 0;
  uint32_t wire = 0;       // 0 varint, 1 eight bytes, 2 bytes, 5 four bytes
  uint64_t value = 0;      // of wires 0, 1 and 5
  std::string_view bytes;  // of wire 2
};

class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : rest_(bytes) {}
  bool done() const { return rest_.empty(); }

  Result<Field> next() {
    Field field;
    QUERN_ASSIGN(const uint64_t tag, varint());
    field.number = static_cast<uint32_t>(tag >> 3);
    field.wire = static_cast<uint32_t>(tag & 7);
    if (tag >> 32 != 0 || field.number == 0) return error("field number {} is invalid", tag >> 3);
    switch (field.wire) {
      case 0: {
        QUERN_ASSIGN(field.value, varint());
        return field;
      }
      case 1:
        return fixed(8, field);
      case 5:
        return fixed(4, field);
      case 2: {
        QUERN_ASSIGN(const uint64_t size, varint());
        if (size > rest_.size()) {
          return error("field {}: {} bytes exceed the {} that remain", field.number, size,
                       rest_.size());
        }
        field.bytes = rest_.substr(0, size);
        rest_.remove_prefix(size);
        return field;
      }
      default:
        return error("field {}: wire type {} is not supported", field.number, field.wire);
    }
  }

 private:
  Result<uint64_t> varint() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_[0]);
      rest_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    return error("a number is cut off or longer than 10 bytes");
  }

  Result<Field> fixed(size_t size, Field field) {
    if (rest_.size() < size) return error("field {}: cut off", field.number);
    std::memcpy(&field.value, rest_.data(), size);
    rest_.remove_prefix(size);
    return field;
  }

  std::string_view rest_;
};

enum class PieceType : uint64_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
enum class ModelType : uint64_t { kUnigram = 1, kBpe = 2, kWord = 3, kChar = 4 };

struct Piece {
  std::string_view text;
  float score = 0;
  PieceType type = PieceType::kNormal;
};

struct ModelFile {
  std::vector<Piece> pieces;
  ModelType type = ModelType::kUnigram;
  bool spaces_are_suffixes = false;
  bool byte_fallback = false;
  int32_t unknown = 0, bos = 1, eos = 2;
  std::string_view charsmap;
  bool adds_prefix = true, removes_spaces = true, escapes_spaces = true;
};

Status expect_wire(const Field& field, uint32_t wire) {
  if (field.wire == wire) return {};
  return error("field {}: wire type {}, expected {}", field.number, field.wire, wire);
}

Result<Piece> read_piece(std::string_view bytes) {
  Piece piece;
  for (WireReader reader(bytes); !reader.done();) {
    QUERN_ASSIGN(const Field field, reader.next());
    if (field.number == 1) {
      QUERN_TRY(expect_wire(field, 2));
      piece.text = field.bytes;
    } else if (field.number == 2) {
      QUERN_TRY(expect_wire(field, 5));
      const auto bits = static_cast<uint32_t>(field.value);
      std::memcpy(&piece.score, &bits, sizeof bits);
      if (!std::isfinite(piece.score)) return error("the score is not finite");
    } else if (field.number == 3) {
      QUERN_TRY(expect_wire(field, 0));
      if (field.value < 1 || field.value > 6) return error("type {} is unknown", field.value);
      piece.type = static_cast<PieceType>(field.value);
    }
  }
  if (!is_valid_utf8(piece.text)) return error("the text is not valid UTF-8");
  return piece;
}

Status read_trainer(std::string_view bytes, ModelFile* file) {
  for (WireReader reader(bytes); !reader.done();) {
    QUERN_ASSIGN(const Field field, reader.next());
    if (field.wire != 0) continue;
    switch (field.number) {
      case 3:
        file->type = static_cast<ModelType>(field.value);
        break;
      case 24:
        file->spaces_are_suffixes = field.value != 0;
        break;
      case 35:
        file->byte_fallback = field.value != 0;
        break;
      case 40:
        file->unknown = static_cast<int32_t>(field.value);
        break;
      case 41:
        file->bos = static_cast<int32_t>(field.value);
        break;
      case 42:
        file->eos = static_cast<int32_t>(field.value);
        break;
      default:
        break;
    }
  }
  return {};
}

Status read_normalizer(std::string_view bytes, ModelFile* file) {
  for (WireReader reader(bytes); !reader.done();) {
    QUERN_ASSIGN(const Field field, reader.next());
    if (field.number == 2) {
      QUERN_TRY(expect_wire(field, 2));
      file->charsmap = field.bytes;
    } else if (field.wire == 0 && field.number == 3) {
      file->adds_prefix = field.value != 0;
    } else if (field.wire == 0 && field.number == 4) {
      file->removes_spaces = field.value != 0;
    } else if (field.wire == 0 && field.number == 5) {
      file->escapes_spaces = field.value != 0;
    }
  }
  return {};
}

Result<ModelFile> read_model_file(std::string_view bytes) {
  ModelFile file;
  for (WireReader reader(bytes); !reader.done();) {
    QUERN_ASSIGN(const Field field, reader.next());
    if (field.number < 1 || field.number > 3) continue;
    QUERN_TRY(expect_wire(field, 2));
    if (field.number == 2) QUERN_TRY(read_trainer(field.bytes, &file));
    if (field.number == 3) QUERN_TRY(read_normalizer(field.bytes, &file));
    if (field.number != 1) continue;
    auto piece = read_piece(field.bytes);
    if (!piece) {
      return tl::unexpected(
          in_context(std::move(piece).error(), fmt::format("piece {}", file.pieces.size())));
    }
    file.pieces.push_back(*piece);
    if (file.pieces.size() > static_cast<size_t>(kMaxVocabulary)) return error("too many pieces");
  }
  if (file.pieces.empty()) return error("no pieces");
  if (file.type != ModelType::kBpe && file.type != ModelType::kUnigram) {
    return error("model type {} is not supported; known: 1 (Unigram), 2 (BPE)",
                 static_cast<uint64_t>(file.type));
  }
  if (!file.escapes_spaces) return error("escape_whitespaces = false is not supported");
  return file;
}

PieceKind kind_of(PieceType type) {
  switch (type) {
    case PieceType::kUserDefined:
      return PieceKind::kUserDefined;
    case PieceType::kUnused:
      return PieceKind::kUnused;
    case PieceType::kNormal:
      return PieceKind::kNormal;
    default:
      return PieceKind::kReserved;
  }
}

// Pieces that are found in the text before anything else is done to it.
Status add_tokens(const ModelFile& file, Parts* parts) {
  for (size_t i = 0; i < file.pieces.size(); ++i) {
    const Piece& piece = file.pieces[i];
    QUERN_TRY(parts->vocabulary->add(piece.text, static_cast<int64_t>(i)));
    const bool is_special = piece.type == PieceType::kControl || piece.type == PieceType::kUnknown;
    // Unigram weighs user-defined pieces against the others instead of cutting the text at them.
    const bool is_cut = piece.type == PieceType::kUserDefined && file.type == ModelType::kBpe;
    if ((!is_special && !is_cut) || piece.text.empty()) continue;
    AddedToken token;
    token.text = std::string(piece.text);
    token.id = static_cast<Token>(i);
    token.is_special = is_special;
    // User-defined pieces are found after spaces became "▁", which they may hold.
    token.matches = is_special ? MatchedIn::kInput : MatchedIn::kNormalizedVerbatim;
    parts->added.push_back(std::move(token));
  }
  return {};
}

Status add_normalizers(const ModelFile& file, Parts* parts) {
  if (!file.charsmap.empty()) {
    QUERN_ASSIGN(auto step, make_charsmap(file.charsmap, CharsmapUnit::kLongestPrefix));
    parts->normalizers.push_back(std::move(step));
  }
  SpaceRules rules;
  rules.remove_extra = file.removes_spaces;
  rules.add_prefix = file.adds_prefix;
  rules.add_suffix = file.spaces_are_suffixes;
  if (rules.remove_extra || rules.add_prefix) parts->normalizers.push_back(make_space_rules(rules));
  parts->normalizers.push_back(make_replace(Pattern::literal(" "), std::string(kMetaspace)));
  parts->decoders.push_back(make_replace_decoder(Pattern::literal(std::string(kMetaspace)), " "));
  parts->decoders.push_back(make_byte_fallback_decoder());
  parts->decoders.push_back(make_fuse_decoder());
  if (file.adds_prefix) {
    // Where extra spaces are removed, no text begins with one.
    const size_t n = file.removes_spaces ? SIZE_MAX : 1;
    const bool at_end = file.spaces_are_suffixes;
    parts->decoders.push_back(make_strip_decoder(" ", at_end ? 0 : n, at_end ? n : 0));
  }
  return {};
}

std::optional<Token> id_in(const ModelFile& file, int64_t id) {
  if (id < 0 || id >= static_cast<int64_t>(file.pieces.size())) return std::nullopt;
  return static_cast<Token>(id);
}

void make_model(const ModelFile& file, Parts* parts) {
  ScoredPieces pieces;
  for (const Piece& piece : file.pieces) {
    pieces.scores.push_back(piece.score);
    pieces.kinds.push_back(kind_of(piece.type));
  }
  const std::optional<Token> unknown = id_in(file, file.unknown);
  if (file.type == ModelType::kBpe) {
    ScoreBpeOptions options{unknown, file.byte_fallback};
    parts->model = make_score_bpe(*parts->vocabulary, std::move(pieces), options);
  } else {
    UnigramOptions options{unknown, file.byte_fallback, ScorePrecision::kSingle};
    std::vector<double> scores(pieces.scores.begin(), pieces.scores.end());
    parts->model =
        make_unigram(*parts->vocabulary, std::move(scores), std::move(pieces.kinds), options);
  }
  if (file.byte_fallback) parts->raw_bytes = RawBytes::kByteTokens;
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> parse_tokenizer_model(std::string_view bytes,
                                                         const TokenizerExtras& extras) {
  QUERN_ASSIGN(const ModelFile file, read_model_file(bytes));
  Parts parts;
  parts.vocabulary = std::make_shared<Vocabulary>(file.pieces.size());
  QUERN_TRY(add_tokens(file, &parts));
  QUERN_TRY(add_normalizers(file, &parts));
  make_model(file, &parts);
  const auto pick = [&](const std::optional<std::string>& text, std::optional<int64_t> id,
                        int32_t stored) -> std::optional<Token> {
    if (text) {
      if (const auto found = parts.vocabulary->find(*text)) return found;
    }
    return id_in(file, stored >= 0 ? stored : id.value_or(-1));
  };
  parts.bos = pick(extras.bos, extras.bos_id, file.bos);
  parts.eos = pick(extras.eos, extras.eos_id, file.eos);
  parts.adds_bos = parts.bos && extras.adds_bos.value_or(true);
  parts.chat_template = extras.chat_template;
  return Pipeline::create(std::move(parts));
}

Result<std::unique_ptr<Tokenizer>> open_tokenizer_model(const std::string& path,
                                                        const std::string& directory) {
  QUERN_ASSIGN(const TokenizerExtras extras, read_extras(directory));
  QUERN_ASSIGN(const std::string bytes, read_file(path));
  auto tokenizer = parse_tokenizer_model(bytes, extras);
  if (!tokenizer) {
    const std::string name = std::filesystem::path(path).filename().string();
    return tl::unexpected(in_context(std::move(tokenizer).error(), name));
  }
  return tokenizer;
}

}  // namespace quern::tok
