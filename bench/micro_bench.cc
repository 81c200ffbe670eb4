// What the page service's own code costs of a fault and of a restore, without the kernel's part.
#include <benchmark/benchmark.h>

#include "checkpoint/page_index.h"
#include "checkpoint/record.h"

namespace thaw::checkpoint {
namespace {

constexpr std::uint64_t kBase = 0x10000000;

// So many runs of four pages, each with a page's gap behind it.
PageIndex index_of(std::int64_t pieces) {
  PageIndex index;
  for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(pieces); ++i)
    index.add({kBase + i * 5 * kPageSize, 4 * kPageSize, i * 4 * kPageSize});
  return index;
}

// Faults far apart in a small program's memory, and in one of 100,000 pieces.
void find_piece(benchmark::State& state) {
  PageIndex index = index_of(state.range(0));
  std::uint64_t span = static_cast<std::uint64_t>(state.range(0)) * 5 * kPageSize, at = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(index.around(kBase + at, 16 << 10, 64 << 10));
    at = (at + 7919 * kPageSize) % span;
  }
}
BENCHMARK(find_piece)->Arg(100)->Arg(100'000);

void read_and_forget(benchmark::State& state) {
  PageIndex index = index_of(state.range(0));
  std::uint64_t next = 0;
  for (auto _ : state) {
    std::uint64_t address = kBase + next * 5 * kPageSize;
    index.remove(address, 4 * kPageSize);
    index.add({address, 4 * kPageSize, 0});
    next = (next + 7919) % static_cast<std::uint64_t>(state.range(0));
  }
}
BENCHMARK(read_and_forget)->Arg(100)->Arg(100'000);

// A record as it leaves one start and comes to the next.
void pass_on_a_record(benchmark::State& state) {
  std::vector<TouchedRange> touched;
  for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(state.range(0)); ++i)
    touched.push_back({1, kBase + (i * 7919 % 100'000) * 16 * kPageSize, kPageSize});
  for (auto _ : state)
    benchmark::DoNotOptimize(decode_ranges(encode_ranges(merge_ranges(touched))));
}
BENCHMARK(pass_on_a_record)->Arg(500)->Arg(16'000)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace thaw::checkpoint

BENCHMARK_MAIN();
