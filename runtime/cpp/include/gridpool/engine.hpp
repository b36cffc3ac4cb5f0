// Engines: one interface, two backends (ONNX Runtime, TensorRT), both found at run time.
//
// An engine runs one graph of a bundle; inputs are checked by name, dtype and shape before anything is launched. Tensors
// that a graph reads and writes back (the KV cache) are a `State`: they stay where the engine computes, and one buffer is
// bound as input and output at once, so a decode step copies no cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gridpool/bundle.hpp"

namespace gridpool {

enum class DType { float32, float16, float64, int64, int32, int8, uint8, boolean };

GRIDPOOL_API const char* name_of(DType dtype);
GRIDPOOL_API size_t size_of(DType dtype);

/// A dimension; one that is known only at run time has size -1 and a name, and a name has the same size in all inputs of a run.
struct Dimension {
  int64_t size = -1;
  std::string name;
};

/// Name, dtype and shape of a graph's input or output.
struct TensorSpec {
  std::string name;
  DType dtype = DType::float32;
  std::vector<Dimension> shape;
};

/// A view of an array, C order.
struct TensorView {
  DType dtype = DType::float32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  GRIDPOOL_API int64_t count() const;
};

/// An array that owns its memory, C order.
struct Tensor {
  DType dtype = DType::float32;
  std::vector<int64_t> shape;
  std::vector<std::byte> data;

  GRIDPOOL_API static Tensor empty(DType dtype, std::vector<int64_t> shape);
  GRIDPOOL_API int64_t count() const;
  GRIDPOOL_API TensorView view() const;
  /// The values as float32, rounded from or widened to it (float32 and float16 tensors only).
  GRIDPOOL_API std::vector<float> floats() const;
};

/// float32 or float16 values as `dtype`, which is one of the two; a copy even if it has that dtype.
GRIDPOOL_API Tensor cast(const TensorView& values, DType dtype);

struct EngineOptions {
  std::string device = "auto"; ///< "cpu" | "cuda" | "auto", see `place`
  int threads = 0;             ///< CPU threads of one run, 0 for the backend's choice
  std::string onnxruntime;     ///< path of libonnxruntime.so; empty: the system's, else that of a Python wheel
};

/// Options with a device, and why it is that one, as a line for a log; the note is empty if there was no choice.
struct Placement {
  EngineOptions options;
  std::string note;
};

/// Buffers that a graph updates in place; one per conversation. It must not outlive its engine.
class GRIDPOOL_API State {
 public:
  explicit State(std::map<std::string, std::string> names) : pairs(std::move(names)) {}
  virtual ~State();
  const std::map<std::string, std::string> pairs;  ///< {input name: output name}
};

using Feeds = std::vector<std::pair<std::string, TensorView>>;

/// One loaded graph. Not safe for two threads at once.
class GRIDPOOL_API Engine {
 public:
  virtual ~Engine();
  const std::string& backend() const { return backend_; }
  const std::string& device() const { return device_; }
  const std::vector<TensorSpec>& inputs() const { return inputs_; }  ///< all tensors of the graph, state included
  const std::vector<TensorSpec>& outputs() const { return outputs_; }

  /// Zeroed buffers for {input name: output name} pairs of equal dtype and shape.
  virtual std::unique_ptr<State> new_state(const std::map<std::string, std::string>& pairs) = 0;

  /// Run once; `feeds` holds the inputs that `state` does not, the result holds the outputs that it does not.
  virtual std::map<std::string, Tensor> run(const Feeds& feeds, State* state = nullptr) = 0;

 protected:
  Engine(std::string backend, std::string device) : backend_(std::move(backend)), device_(std::move(device)) {}
  std::vector<TensorSpec> inputs_, outputs_;

  /// The outputs that `state` does not keep.
  std::vector<const TensorSpec*> returned(const State* state) const;

 private:
  std::string backend_, device_;
};

/// Where all graphs of `bundle` run when options.device is "auto": on the GPU if there is one and `backend` can use it (TensorRT with
/// engines of every graph, or an ONNX Runtime whose CUDA provider computes), else on the CPU. Other options are returned as they are.
/// EngineError for TensorRT without a GPU.
GRIDPOOL_API Placement place(const Bundle& bundle, const std::string& backend = "auto", const EngineOptions& options = {});

/// Load graph kVision or kDecoder on "onnx" or "tensorrt"; "auto" takes the first of tensorrt, onnx that can run the graph on the device.
/// EngineError, with the reason and what to do, if none can.
GRIDPOOL_API std::unique_ptr<Engine> open_engine(const Bundle& bundle, const std::string& graph, const std::string& backend = "auto",
                                                 const EngineOptions& options = {});

/// Refuse feeds whose names, dtypes or shapes are not those of `specs`, the inputs of a state left out.
GRIDPOOL_API void check_feeds(const std::vector<TensorSpec>& specs, const Feeds& feeds, const State* state = nullptr);

}  // namespace gridpool
