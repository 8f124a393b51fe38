// SPDX-License-Identifier: Apache-2.0
// The generic kernels at every ISA of the host, beside the machine's own limits measured in the
// same run: multiply-adds out of registers, and reading memory; and the decoders, to floats and to
// panels, of every example of every codec. Each operation is checked against the reference before
// it is timed. One thread.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/checked.h"
#include "base/parallel.h"
#include "base/random.h"
#include "codecs/codec.h"
#include "kernels/attention.h"
#include "kernels/hadamard.h"
#include "kernels/kernels.h"
#include "kernels/peaks.h"
#include "kvcache/kv_cache.h"
#include "linalg/cholesky.h"
#include "model/synthetic.h"
#include "tensor/matrix.h"
#include "transforms/basis.h"

namespace quern {
namespace {

AlignedVector<float> gaussian(int64_t n, uint64_t seed) {
  AlignedVector<float> x(static_cast<size_t>(n));
  Random random(seed);
  for (float& v : x) v = static_cast<float>(random.gaussian());
  return x;
}

benchmark::Counter rate(double per_iteration) {
  return {per_iteration, benchmark::Counter::kIsIterationInvariantRate,
          benchmark::Counter::OneK::kIs1000};
}

// ---- The machine's limits.

void peak(benchmark::State& state, const PeakLoop& loop) {
  constexpr int64_t kTurns = 1000;
  for (auto _ : state) loop.run(kTurns);
  state.counters["op/s"] = rate(loop.operations * kTurns);
}

void read_bandwidth(benchmark::State& state) {
  const auto n = static_cast<size_t>(state.range(0));
  const AlignedVector<std::byte> data(n, std::byte{3});
  for (auto _ : state) stream_loops().read(data.data(), n);
  state.counters["B/s"] = rate(static_cast<double>(n));
}

// ---- Kernels.

void dot_tile(benchmark::State& state, const KernelTable& table, int64_t n_x, int64_t n_w,
              int64_t k) {
  const auto x = gaussian(n_x * k, 1), w = gaussian(n_w * k, 2);
  std::vector<float> y(static_cast<size_t>(n_x * n_w));
  table.dot_tile(x.data(), k, n_x, w.data(), k, n_w, k, y.data(), n_w);
  const int64_t i = n_x - 1, j = n_w - 1;
  if (y.back() != kernels(Isa::kRef).dot(x.data() + i * k, w.data() + j * k, k)) {
    state.SkipWithError("differs from the reference");
    return;
  }
  for (auto _ : state) {
    table.dot_tile(x.data(), k, n_x, w.data(), k, n_w, k, y.data(), n_w);
    benchmark::ClobberMemory();
  }
  state.counters["FLOP/s"] = rate(2.0 * static_cast<double>(n_x * n_w * k));
  state.counters["w B/s"] = rate(4.0 * static_cast<double>(n_w * k));
}

void subtract_rows(benchmark::State& state, const KernelTable& table, int64_t n) {
  Matrix<double> a(n, n), v(n, n + 8), got(n, n), want(n, n);
  Random random(1);
  for (Matrix<double>* m : {&a, &v}) {
    for (int64_t i = 0; i < m->rows() * m->cols(); ++i) m->data()[i] = random.gaussian();
  }
  const auto run = [&](const KernelTable& t, Matrix<double>& y) {
    t.subtract_rows(a.data(), n, n, v.data(), n + 8, n, n, y.data(), n);
  };
  run(table, got);
  run(kernels(Isa::kRef), want);
  if (got != want) {
    state.SkipWithError("differs from the reference");
    return;
  }
  for (auto _ : state) {
    run(table, got);
    benchmark::ClobberMemory();
  }
  state.counters["FLOP/s"] = rate(2.0 * static_cast<double>(n * n * n));
}

using RowOperation = std::function<void(const KernelTable&, float* row)>;

// Times `operation` on a row of n values that is copied in before each call (the copy is timed
// alone as the row named `copy`).
void row(benchmark::State& state, const KernelTable& table, const RowOperation& operation) {
  const int64_t n = 4096;
  const auto source = gaussian(n, 3);
  auto got = source, want = source;
  operation(table, got.data());
  operation(kernels(Isa::kRef), want.data());
  if (std::memcmp(got.data(), want.data(), sizeof(float) * static_cast<size_t>(n)) != 0) {
    state.SkipWithError("differs from the reference");
    return;
  }
  for (auto _ : state) {
    std::memcpy(got.data(), source.data(), sizeof(float) * static_cast<size_t>(n));
    operation(table, got.data());
    benchmark::ClobberMemory();
  }
  state.counters["elements/s"] = rate(static_cast<double>(n));
}

void register_rows(const KernelTable& table, const std::string& suffix) {
  static const auto gain = gaussian(4096, 4), matrix = gaussian(64 * 128, 5);
  static std::vector<uint16_t> halves(4096, 0x3c01);
  const std::pair<const char*, RowOperation> rows[] = {
      {"copy", [](const KernelTable&, float*) {}},
      {"f16_to_float",
       [](const KernelTable& t, float* x) { t.f16_to_float(halves.data(), 4096, x); }},
      {"dot", [](const KernelTable& t, float* x) { x[0] = t.dot(x, gain.data(), 4096); }},
      {"rms_norm",
       [](const KernelTable& t, float* x) { t.rms_norm(x, gain.data(), 1e-5f, 4096, x); }},
      {"silu_gated", [](const KernelTable& t,
                        float* x) { t.activate_gated(Activation::kSilu, gain.data(), 4096, x); }},
      {"gelu", [](const KernelTable& t, float* x) { t.activate(Activation::kGelu, 4096, x); }},
      {"softmax", [](const KernelTable& t, float* x) { t.softmax(1, 4096, x, nullptr); }},
      {"fwht", [](const KernelTable& t, float* x) { t.fwht(12, nullptr, 1.0f / 64, x, x); }},
      {"axpy_rows_32x64x128",
       [](const KernelTable& t, float* x) {
         t.axpy_rows(matrix.data(), 64, 32, matrix.data(), 128, 64, 128, x, 128);
       }},
  };
  for (const auto& [name, operation] : rows) {
    benchmark::RegisterBenchmark((std::string("row/") + name + suffix).c_str(),
                                 [&table, op = operation](auto& state) { row(state, table, op); });
  }
}

void register_tiles(const KernelTable& table, const std::string& suffix) {
  const int64_t shapes[][3] = {{1, 64, 1024},   {4, 64, 256},    {4, 64, 1024},   {16, 64, 1024},
                               {64, 64, 128},   {64, 64, 1024},  {64, 48, 4096},  {256, 96, 512},
                               {1, 8192, 4096}, {4, 8192, 4096}, {16, 8192, 4096}};
  for (const auto& s : shapes) {
    const std::string name = fmt::format("dot_tile/{}x{}x{}{}", s[0], s[1], s[2], suffix);
    benchmark::RegisterBenchmark(name.c_str(), [&table, x = s[0], w = s[1], k = s[2]](auto& state) {
      dot_tile(state, table, x, w, k);
    });
  }
  benchmark::RegisterBenchmark(fmt::format("subtract_rows/144{}", suffix).c_str(),
                               [&table](auto& state) { subtract_rows(state, table, 144); });
}

// ---- What is built on the table; CPU time of the calling thread, one thread where no number is
// given, or else elapsed time.

// Widths that differ from position to position, for weights from 2^-14 to 2^-6.
void narrow_pages(LayerKv& layer, int64_t n_ctx) {
  auto weights = gaussian(n_ctx, 4);
  for (float& weight : weights) weight = std::exp2f(-10 + std::clamp(weight, -4.0f, 4.0f));
  const KvAttention seen{weights.data(), 1, n_ctx};
  layer.adapt(n_ctx, {&seen, 1});
}

// Eight query heads that share a KV head, behind a cache of `n_ctx` positions.
void attention(benchmark::State& state, const char* kv) {
  const int64_t n_q = state.range(0), n_ctx = state.range(1), n_heads = 8, d_head = 64;
  const KvRecipe recipe = *KvRecipe::parse(kv);
  KvCache cache({{1, d_head}}, n_ctx, recipe);
  LayerKv& layer = cache.layer(0);
  const auto keys = gaussian(n_ctx * d_head, 2), values = gaussian(n_ctx * d_head, 3);
  layer.put(0, {keys.data(), n_ctx, d_head}, {values.data(), n_ctx, d_head});
  if (layer.adapts()) narrow_pages(layer, n_ctx);
  const LayerKv::Codes codes(layer, 0);
  const LayerKv::Exact exact(layer, 0);
  std::vector<int64_t> none, coded, last;
  double pairs = 0;
  for (int64_t i = 0; i < n_q; ++i) {
    none.push_back(0);
    last.push_back(n_ctx - n_q + i + 1);
    coded.push_back(recipe.is_coded() ? recipe.coded_before(last.back() - 1) : 0);
    pairs += static_cast<double>(last.back() * n_heads);
  }
  const KvSegment segments[] = {{&codes, none.data(), coded.data()},
                                {&exact, coded.data(), last.data()}};
  const auto q = gaussian(n_q * n_heads * d_head, 1);
  std::vector<float> out(q.size());
  AttendArgs args;
  args.q = q.data();
  args.ld_q = args.ld_out = n_heads * d_head;
  args.d_head = d_head;
  args.n_q = n_q;
  args.n_heads = n_heads;
  args.segments = std::span(segments).subspan(recipe.is_coded() ? 0 : 1);
  args.n_ctx = n_ctx;
  args.scale = 0.125f;
  args.out = out.data();
  for (auto _ : state) attend(args);
  state.counters["FLOP/s"] = rate(4.0 * pairs * static_cast<double>(d_head));
  state.counters["KV B/s"] = rate(static_cast<double>(cache.n_bytes()));
}

void hadamard_rows(benchmark::State& state) {
  const auto plan = HadamardPlan::make(state.range(0));
  Matrix<double> x(8, state.range(0));
  x(0, 0) = 1;
  for (auto _ : state) plan->apply_rows(x.view());
  state.counters["elements/s"] = rate(static_cast<double>(8 * state.range(0)));
}

// Operators as the runtime applies them, row after row: rows that lie in the first cache.
void online(benchmark::State& state, const Chain& chain, int64_t n) {
  constexpr int64_t kRows = 4;
  AlignedVector<float> x = gaussian(kRows * n, 1);
  for (auto _ : state) {
    for (int64_t i = 0; i < kRows; ++i) chain.apply(x.data() + i * n, n);
    benchmark::ClobberMemory();
  }
  state.counters["elements/s"] = rate(static_cast<double>(kRows * n));
}

void register_online() {
  const auto add = [](const std::string& name, int64_t n, OperatorPtr signs,
                      Result<OperatorPtr> op) {
    const auto chain = std::make_shared<Chain>();
    if (signs != nullptr) chain->add(std::move(signs));
    chain->add(*std::move(op));
    benchmark::RegisterBenchmark(name.c_str(),
                                 [chain, n](auto& state) { online(state, *chain, n); });
  };
  for (int64_t n : {512, 2048, 4096, 5632, 11008}) {
    add(fmt::format("online/hadamard/{}", n), n, nullptr, make_hadamard(n));
    add(fmt::format("online/rht/{}", n), n, make_signs(n, 0, 0), make_hadamard(n));
  }
  const int64_t heads[][2] = {{8, 64}, {32, 64}, {32, 128}, {40, 128}};
  for (const auto& [n_heads, d_head] : heads) {
    add(fmt::format("online/head_axis/{}x{}", n_heads, d_head), n_heads * d_head, nullptr,
        make_head_axis(n_heads, d_head));
  }
}

void gram(benchmark::State& state) {
  const int64_t n = state.range(0), n_tokens = 2048;
  const auto x = gaussian(n_tokens * n, 1);
  Matrix<double> h(n, n);
  for (auto _ : state) {
    accumulate_gram(MatrixView<const float>(x.data(), n_tokens, n), h.view());
  }
  state.counters["FLOP/s"] = rate(static_cast<double>(n_tokens * n * n));
}

void cholesky(benchmark::State& state, const KernelTable& table) {
  const int64_t n = state.range(0);
  const auto x = gaussian(2 * n * n, 1);
  Matrix<double> h(n, n), factor = h;
  accumulate_gram(MatrixView<const float>(x.data(), 2 * n, n), h.view());
  set_thread_count(static_cast<int>(state.range(1)));
  for (auto _ : state) {
    state.PauseTiming();
    factor = h;
    state.ResumeTiming();
    if (!reverse_cholesky(factor.view(), table)) state.SkipWithError("not positive definite");
  }
  set_thread_count(1);
  state.counters["FLOP/s"] = rate(static_cast<double>(n * n) * static_cast<double>(n) / 3);
}

void register_cholesky(const KernelTable& table, const std::string& suffix) {
  const auto add = [&](int64_t n, int64_t n_threads) {
    return benchmark::RegisterBenchmark(("reverse_cholesky" + suffix).c_str(),
                                        [&table](auto& state) { cholesky(state, table); })
        ->ArgNames({"n", "threads"})
        ->Args({n, n_threads});
  };
  for (int64_t n : {1024, 2048, 4096}) {
    add(n, 1);
    add(n, 2)->UseRealTime();
  }
}

// Rows of a matrix whose codes lie past the second cache, into a tile that stays in it. The codec
// chooses its implementation by QUERN_ISA; conformance tests hold them to the same bits.
void decode(benchmark::State& state, std::string_view codec) {
  constexpr int64_t kOut = 4096, kIn = 4096, kRows = 16;
  const auto weight = synthetic_linear(std::string(codec), kOut, kIn, 1);
  if (!weight) {
    state.SkipWithError(weight.error().message.c_str());
    return;
  }
  const int64_t n = round_up(kRows, weight->codec->decode_unit());
  AlignedVector<float> tile(static_cast<size_t>(n * kIn));
  int64_t row = 0;
  for (auto _ : state) {
    decode_rows(*weight, row, n, tile.data());
    row = row + 2 * n > kOut ? 0 : row + n;
    benchmark::ClobberMemory();
  }
  state.counters["weights/s"] = rate(static_cast<double>(n * kIn));
  state.counters["code B/s"] =
      rate(static_cast<double>(weight->n_bytes()) * static_cast<double>(n) / kOut);
}

// The integer form of such rows, in pieces as a product of few tokens takes them.
void panels(benchmark::State& state, std::string_view codec) {
  constexpr int64_t kOut = 4096, kIn = 4096, kLevels = 16 << 10;
  const auto weight = synthetic_linear(std::string(codec), kOut, kIn, 1, Activations::kInt8);
  if (!weight) {
    state.SkipWithError(weight.error().message.c_str());
    return;
  }
  const PanelTile tile = weight->codec->panel_tile(kIn);
  const int64_t tile_cols = tile.cols == 0 ? kIn : tile.cols;
  const int64_t cols = std::max<int64_t>(1, kLevels / tile.rows / tile_cols) * tile_cols;
  const int64_t levels_stride = round_up(cols, tile.group) * kPanelRows;
  const int64_t scales_stride = levels_stride / tile.group;
  const int64_t n_panels = tile.rows / kPanelRows;
  AlignedVector<uint8_t> levels(static_cast<size_t>(n_panels * levels_stride));
  AlignedVector<float> scales(static_cast<size_t>(n_panels * scales_stride));
  int64_t row = 0;
  for (auto _ : state) {
    for (int64_t col = 0; col < kIn; col += cols) {
      weight->codec->decode_panels(weight->codes, row, tile.rows, col, std::min(cols, kIn - col),
                                   {levels.data(), scales.data(), levels_stride, scales_stride});
      benchmark::ClobberMemory();
    }
    row = row + 2 * tile.rows > kOut ? 0 : row + tile.rows;
  }
  state.counters["weights/s"] = rate(static_cast<double>(tile.rows * kIn));
}

// A coded matrix past the second cache meets rows whose rounding `how` says: "exact", "int8", or a
// quantizer of activations. All with the rounding of the input.
void product(benchmark::State& state, const std::string& codec, const std::string& how,
             int64_t n_rows) {
  constexpr int64_t kOut = 2048, kIn = 4096;
  std::shared_ptr<const ActRounding> rounding;
  if (how != "exact" && how != "int8") {
    rounding = std::make_shared<ActRounding>(ActRounding{*make_act(how), {}});
  }
  const bool is_float =
      how == "exact" || (rounding != nullptr && rounding->act->form() == ActForm::kValues);
  auto weight =
      synthetic_linear(codec, kOut, kIn, 1, is_float ? Activations::kExact : Activations::kInt8);
  weight->rounding = rounding;
  const AlignedVector<float> x = gaussian(n_rows * kIn, 2);
  Matrix<float> y(n_rows, kOut);
  for (auto _ : state) {
    linear(*weight, {x.data(), n_rows, kIn, kIn}, y.view());
    benchmark::ClobberMemory();
  }
  state.counters["operations/s"] = rate(2.0 * kOut * kIn * static_cast<double>(n_rows));
}

// A row of activations rounded for groups of 128 weights, in the first cache.
void round_row(benchmark::State& state, const std::string& how) {
  constexpr int64_t kIn = 4096, kGroup = 128;
  const auto act = how == "int8" ? nullptr : *make_act(how);
  const AlignedVector<float> x = gaussian(kIn, 2);
  AlignedVector<int8_t> levels(kIn);
  std::vector<float> scales(kIn / kGroup);
  std::vector<int32_t> offsets(kIn / kGroup);
  for (auto _ : state) {
    if (act == nullptr) {
      kernels().quantize_row(x.data(), kIn, kGroup, levels.data(), scales.data(), offsets.data());
    } else {
      act->levels(x.data(), kIn, {}, {kGroup, levels.data(), scales.data(), offsets.data()});
    }
    benchmark::ClobberMemory();
  }
  state.counters["values/s"] = rate(static_cast<double>(kIn));
}

void register_rounded() {
  for (const std::string how : {"int8", "int(8)", "int(4, clip=0.9)", "int(4, sym=false)"}) {
    benchmark::RegisterBenchmark(fmt::format("round_row/{}", how).c_str(),
                                 [how](auto& state) { round_row(state, how); });
  }
  for (const std::string codec : {"int(8, group=0)", "int(4)"}) {
    for (const std::string how :
         {"exact", "int8", "int(8)", "int(4, clip=0.9)", "int(4, sym=false)", "fp8"}) {
      for (const int64_t n_rows : {1, 256}) {
        benchmark::RegisterBenchmark(fmt::format("product/{}/{}/{}", codec, how, n_rows).c_str(),
                                     [=](auto& state) { product(state, codec, how, n_rows); });
      }
    }
  }
}

void register_codecs() {
  for (const CodecInfo& info : codecs()) {
    for (const std::string_view text : info.examples) {
      benchmark::RegisterBenchmark(fmt::format("decode/{}", text).c_str(),
                                   [text](auto& state) { decode(state, text); });
      benchmark::RegisterBenchmark(fmt::format("panels/{}", text).c_str(),
                                   [text](auto& state) { panels(state, text); });
    }
  }
}

void register_all() {
  set_thread_count(1);
  for (const PeakLoop& loop : peak_loops()) {
    benchmark::RegisterBenchmark(fmt::format("peak/{}", loop.name).c_str(),
                                 [loop](auto& state) { peak(state, loop); });
  }
  benchmark::RegisterBenchmark("read", read_bandwidth)->Arg(1 << 15)->Arg(1 << 19)->Arg(1 << 28);
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
    if (!host_has(isa)) continue;
    const std::string suffix = fmt::format("/{}", isa_name(isa));
    register_tiles(kernels(isa), suffix);
    register_rows(kernels(isa), suffix);
    register_cholesky(kernels(isa), suffix);
  }
  register_rounded();
  register_codecs();
  for (const char* kv :
       {"f16", "q8", "q4", "kivi-2bit", "lloyd-2bit", "qaq-3bit", "decoquant-4bit"}) {
    benchmark::RegisterBenchmark(fmt::format("attend/{}", kv).c_str(),
                                 [kv](auto& state) { attention(state, kv); })
        ->ArgNames({"queries", "context"})
        ->Args({1, 4096})
        ->Args({1, 32768})
        ->Args({512, 512})
        ->Args({512, 4096});
  }
  for (int64_t n : {4096, 5120, 11008}) {
    benchmark::RegisterBenchmark("hadamard/double", hadamard_rows)->Arg(n);
  }
  register_online();
  benchmark::RegisterBenchmark("gram", gram)->Arg(1024)->Arg(4096);
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) {
  quern::register_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
