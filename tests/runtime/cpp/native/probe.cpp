// Parts of the library behind stdin and stdout, for tests that compare them with Python: one JSON value a line in, one out.
//
//   probe frames        [path, T, with pixels?]          -> {indices, timestamps, duration, total, size, frames in base16}
//   probe watch         file, device or address          -> {times, frames in base16, lost}
//   probe resize        [h, w, h', w', filter, base16]   -> the resized pixels, base16
//   probe open          path of a bundle                 -> {}
//   probe tokenize FILE text                             -> ids
//   probe literal FILE  text                             -> ids, special tokens read as text
//   probe stream FILE   ids                              -> the pieces of text that a stream gives
//   probe answer        [bundle, video, question, count, threads, libonnxruntime] -> seconds since BENCHMARK_STARTED until
//                       ready and until the first token, tokens a second of `count` more, and the first id
//   probe engine        [bundle, graph, TensorRT's version, the GPU's name, major, minor] -> {file, plugin, inputs}
// A fault that a user can fix comes out as {"error": message, "kind": class}. Each line has 20 seconds, then the process is killed.
#include <gridpool/gridpool.hpp>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>

#include "find_engine.hpp"

using Json = nlohmann::json;
using namespace gridpool;

namespace {

std::string kind_of(const UserError& error) {
  if (dynamic_cast<const BundleError*>(&error)) return "BundleError";
  if (dynamic_cast<const VideoError*>(&error)) return "VideoError";
  if (dynamic_cast<const EngineError*>(&error)) return "EngineError";
  if (dynamic_cast<const PromptError*>(&error)) return "PromptError";
  return dynamic_cast<const OutputError*>(&error) ? "OutputError" : "UserError";
}

std::string hex_of(const std::vector<uint8_t>& bytes) {
  std::string text;
  for (const uint8_t byte : bytes) text += "0123456789abcdef"[byte >> 4], text += "0123456789abcdef"[byte & 15];
  return text;
}

std::vector<uint8_t> bytes_of_hex(const std::string& text) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2) bytes.push_back(static_cast<uint8_t>(std::stoi(text.substr(i, 2), nullptr, 16)));
  return bytes;
}

Json frames(const Json& line) {
  const bool with_pixels = line[2];
  const Clip clip = sample_frames(line[0].get<std::string>(), line[1], [&](const Image& image) { return with_pixels ? image : Image{}; });
  Json pixels = Json::array();
  for (const Image& image : clip.frames) pixels.push_back(hex_of(image.pixels));
  return {{"indices", clip.indices}, {"timestamps", clip.timestamps}, {"duration", clip.duration}, {"total", clip.total},
          {"size", {clip.height, clip.width}}, {"notes", clip.notes()}, {"frames", pixels}};
}

Json watch(const std::string& source) {
  VideoStream stream(source);
  Json times = Json::array(), pixels = Json::array();
  for (double seconds = 0; stream.next(seconds);) times.push_back(seconds), pixels.push_back(hex_of(stream.image().pixels));
  return {{"times", times}, {"frames", pixels}, {"lost", stream.take_lost()}};
}

Json stream(const Tokenizer& tokenizer, const Json& ids) {
  TextStream text(tokenizer);
  Json pieces = Json::array();
  for (const int64_t id : ids) pieces.push_back(text.push(id));
  pieces.push_back(text.finish());
  return pieces;
}

Json engine(const Json& line) {
  const Gpu gpu{line[3].get<std::string>(), line[4], line[5]};
  const FoundEngine found = find_engine(Bundle::open(line[0].get<std::string>()), line[1], line[2], gpu);
  Json inputs = Json::object();
  for (const auto& [name, shape] : found.inputs) {
    inputs[name] = Json::array();
    for (const auto& dimension : shape) inputs[name].push_back(dimension.size < 0 ? Json(dimension.name) : Json(dimension.size));
  }
  return {{"file", found.file.string()}, {"plugin", found.plugin.string()}, {"inputs", inputs}};
}

/// What benchmarks/cpp_runtime.py measures: one answer of a fresh process, its length fixed.
Json answer(const Json& line) {
  const char* text = std::getenv("BENCHMARK_STARTED");
  const double started = text ? std::atof(text) : 0;
  const auto now = [&] { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count() - started; };
  const EngineOptions options{"cpu", line[4], line[5]};
  VideoChat chat = VideoChat::open(Bundle::open(line[0].get<std::string>()), "onnx", options);
  const double ready = now();
  const VisualTokens visual = chat.vision().encode(line[1].get<std::string>());
  Conversation conversation = chat.decoder().conversation();
  const Tensor prompt = chat.prompt().embed(chat.prompt().ids(line[2]), visual.tokens.view());
  const Chooser choose = Sampling{}.chooser();
  std::vector<float> logits = conversation.extend(prompt.view());
  const int64_t first_id = choose(logits);
  const double first = now();
  const int64_t count = line[3];
  for (int64_t i = 0; i < count; ++i) logits = conversation.extend(chat.prompt().embed(choose(logits)).view());
  return {{"ready", ready}, {"first_token", first}, {"tokens_per_second", static_cast<double>(count) / (now() - first)}, {"id", first_id}};
}

}  // namespace

int main(int count, char** words) {
  const std::string part = count > 1 ? words[1] : "";
  std::unique_ptr<Tokenizer> tokenizer;
  for (std::string text; std::getline(std::cin, text);) {
    ::alarm(20);
    Json result;
    try {
      const Json line = Json::parse(text);
      if (count > 2 && !tokenizer) tokenizer = std::make_unique<Tokenizer>(Tokenizer::from_file(words[2]));
      if (part == "frames") {
        result = frames(line);
      } else if (part == "watch") {
        result = watch(line.get<std::string>());
      } else if (part == "resize") {
        result = hex_of(resize({line[0], line[1], bytes_of_hex(line[5])}, line[2], line[3], static_cast<Resample>(line[4].get<int>())).pixels);
      } else if (part == "open") {
        Bundle::open(line.get<std::string>()).preprocessing();
        result = Json::object();
      } else if (part == "tokenize") {
        result = tokenizer->encode(line.get<std::string>());
      } else if (part == "literal") {
        result = tokenizer->encode(line.get<std::string>(), true);
      } else if (part == "stream") {
        result = stream(*tokenizer, line);
      } else if (part == "answer") {
        result = answer(line);
      } else {
        result = engine(line);
      }
    } catch (const UserError& error) {
      result = {{"error", error.what()}, {"kind", kind_of(error)}};
    }
    std::cout << result.dump(-1, ' ', true, Json::error_handler_t::replace) << std::endl;
  }
}
