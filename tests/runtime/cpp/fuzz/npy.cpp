// Any bytes as a .npy file: a view inside them, or std::invalid_argument.
#include "npy.hpp"

#include <cstdlib>
#include <stdexcept>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    const gridpool::TensorView view = gridpool::npy_view(bytes);
    const auto* begin = static_cast<const char*>(view.data);
    const size_t length = static_cast<size_t>(view.count()) * gridpool::size_of(view.dtype);
    if (length && (begin < bytes.data() || length > static_cast<size_t>(bytes.data() + bytes.size() - begin))) std::abort();
    gridpool::npz_of({{"array", view}});
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
