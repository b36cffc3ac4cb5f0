// Launches the kernel library for the cases of a file, once directly and then as a captured graph, and writes its tokens.
//
//   kernel-on-gpu CASES TOKENS [--replays N] [--no-poison]
//
//   CASES    a case after another, as host_kernel.cpp reads one:
//            5 ints: dtype (0 float32, 1 float16, 2 bfloat16), 0, 0, D, the plan's length;
//            2 floats: temperature, order;  the plan;  the clip
//   TOKENS   the direct launches' outputs, one after another
//
// Scratch and output are exactly as large as they must be and are NaN before each launch, so that what is not written shows, and
// so does scratch that is read before it is written. --no-poison leaves them as allocated, for a tool that looks for such reads.
// Exit status 1 where a replay gives other bytes than the direct launch.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda.hpp"
#include "plan.h"
#include "st_gridpool.h"

using namespace gridpool;

namespace {

struct Case {
  DType dtype;
  int hidden;
  float temperature, order;
  std::vector<int> plan;
  std::vector<Vec> clip;
  size_t scratch = 0, tokens = 0;  // bytes
};

template <typename V>
std::vector<V> read(std::FILE* file, size_t count) {
  std::vector<V> values(count);
  if (std::fread(values.data(), sizeof(V), count, file) != count) throw std::runtime_error("the file of cases ends too early");
  return values;
}

Case read_case(std::FILE* file) {
  const auto head = read<int>(file, 5);
  const auto numbers = read<float>(file, 2);
  Case one{static_cast<DType>(head[0]), head[3], numbers[0], numbers[1], read<int>(file, static_cast<size_t>(head[4])), {}};
  const Plan plan{one.plan.data(), head[4]};
  if (const char* fault = plan.fault()) throw std::runtime_error(fault);
  const Args args = plan.args(one.hidden, one.dtype == DType::kFloat ? 4 : 8, one.temperature, one.order);
  const size_t token = static_cast<size_t>(args.vecs) * sizeof(Vec), frames = static_cast<size_t>(args.frames);
  one.clip = read<Vec>(file, frames * static_cast<size_t>(args.height * args.width * args.vecs));
  one.scratch = static_cast<size_t>(plan.scratch_tokens()) * token;
  one.tokens = frames * static_cast<size_t>(args.rows * args.columns) * token;
  return one;
}

class Run {
 public:
  Run(const Case& one, bool poison)
      : case_(one), poison_(poison), plan_(copied(one.plan)), clip_(copied(one.clip)), scratch_(cuda::allocate(one.scratch)), tokens_(cuda::allocate(one.tokens)) {}

  std::vector<char> direct() {
    prepare();
    launch();
    return tokens();
  }

  /// How many replays gave other bytes than `expected`.
  int replays(int count, const std::vector<char>& expected) {
    const cuda::Graph graph(stream_, [this] { launch(); });
    int differ = 0;
    for (int i = 0; i < count; ++i) {
      prepare();
      graph.launch(stream_);
      differ += tokens() != expected;
    }
    return differ;
  }

 private:
  template <typename V>
  cuda::DeviceMemory copied(const std::vector<V>& values) {
    const size_t bytes = values.size() * sizeof(V);
    cuda::DeviceMemory memory = cuda::allocate(bytes);
    cuda::check(cudaMemcpyAsync(memory.get(), values.data(), bytes, cudaMemcpyHostToDevice, stream_.get()), "feeding");
    stream_.synchronize();
    return memory;
  }

  void prepare() {
    if (!poison_) return;
    cuda::check(cudaMemsetAsync(scratch_.get(), 0xff, case_.scratch, stream_.get()), "poisoning scratch");
    cuda::check(cudaMemsetAsync(tokens_.get(), 0xff, case_.tokens, stream_.get()), "poisoning tokens");
  }

  void launch() {
    const Plan plan{case_.plan.data(), static_cast<int>(case_.plan.size())};
    cuda::check(gridpool::launch(plan, static_cast<const int*>(plan_.get()), case_.dtype, case_.hidden, case_.temperature, case_.order,
                                 clip_.get(), scratch_.get(), tokens_.get(), stream_.get()),
                "launching");
  }

  std::vector<char> tokens() {
    std::vector<char> values(case_.tokens);
    cuda::check(cudaMemcpyAsync(values.data(), tokens_.get(), values.size(), cudaMemcpyDeviceToHost, stream_.get()), "fetching");
    stream_.synchronize();
    return values;
  }

  const Case& case_;
  bool poison_;
  cuda::Stream stream_;
  cuda::DeviceMemory plan_, clip_, scratch_, tokens_;
};

int run(const char* cases, const char* results, int replays, bool poison) {
  std::FILE* in = std::fopen(cases, "rb");
  std::FILE* out = std::fopen(results, "wb");
  if (!in || !out) throw std::runtime_error("a file does not open");
  int count = 0, differ = 0;
  for (int c; (c = std::fgetc(in)) != EOF; ++count) {
    std::ungetc(c, in);
    const Case one = read_case(in);
    Run now(one, poison);
    const std::vector<char> tokens = now.direct();
    const int others = now.replays(replays, tokens);
    if (others) std::printf("case %d: %d of %d replays gave other bytes than the direct launch\n", count, others, replays);
    differ += others;
    std::fwrite(tokens.data(), 1, tokens.size(), out);
  }
  std::fclose(in);
  if (std::fclose(out)) throw std::runtime_error("the tokens could not be written");
  std::printf("%d cases, %d replays each, %d of them differ\n", count, replays, differ);
  return differ != 0;
}

}  // namespace

int main(int count, char** words) {
  int replays = 1;
  bool poison = true;
  for (int i = 3; i < count; ++i) {
    if (!std::strcmp(words[i], "--no-poison")) poison = false;
    if (!std::strcmp(words[i], "--replays") && i + 1 < count) replays = std::atoi(words[++i]);
  }
  try {
    if (count < 3) throw std::runtime_error("expected kernel-on-gpu CASES TOKENS [--replays N] [--no-poison]");
    const int status = run(words[1], words[2], replays, poison);
    cuda::check(cudaDeviceReset(), "ending");  // compute-sanitizer looks for leaks when the context ends
    return status;
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
    return 2;
  }
}
