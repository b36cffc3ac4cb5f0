// `gridpool tokens`: the compressed visual tokens of a video, in a .npz file.
#include <memory>

#include "files.hpp"
#include "npy.hpp"
#include "options.hpp"
#include "output.hpp"
#include "text.hpp"

namespace gridpool::cli {
namespace {

struct TokensOptions {
  CommonOptions common;
  std::string video, output;
};

void tokens(const TokensOptions& options) {
  const CommonOptions& common = options.common;
  AtomicFile file(options.output);  // an output that can't be written is refused before the work
  const Bundle bundle = Bundle::open(common.bundle);
  const EngineOptions engine = placed(common, bundle);
  const VisualTokens visual = VisionEncoder::open(bundle, common.backend, engine).encode(options.video);
  const auto count = static_cast<int64_t>(visual.clip.indices.size());
  file.write(npz_of({{"visual_tokens", visual.tokens.view()},
                     {"frames", {DType::int64, {count}, visual.clip.indices.data()}},
                     {"timestamps", {DType::float64, {count}, visual.clip.timestamps.data()}}}));
  file.commit();
  log_notes(visual.clip);
  const std::vector<int64_t>& shape = visual.tokens.shape;
  const std::string dtype = name_of(visual.tokens.dtype);
  print(common.json,
        {{"shape", shape}, {"dtype", dtype}, {"frames", visual.clip.indices}, {"file", options.output}, {"seconds", cli::json_of(visual.seconds)}},
        concat(options.output, ": visual_tokens [", shape.at(0), ", ", shape.at(1), "] ", dtype));
}

}  // namespace

void add_tokens(CLI::App& app) {
  CLI::App* command = app.add_subcommand("tokens", "write a video's compressed visual tokens");
  const auto options = std::make_shared<TokensOptions>();
  add_common(*command, options->common);
  command->add_option("video", options->video, "video file")->required();
  command->add_option("-o,--output", options->output, "file to write")->type_name("FILE.npz")->required();
  command->callback([options] { tokens(*options); });
}

}  // namespace gridpool::cli
