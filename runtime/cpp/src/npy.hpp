// NumPy's array files: read in place, and written into a .npz.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gridpool/engine.hpp"

namespace gridpool {

/// The array in the bytes of a .npy file, not copied; std::invalid_argument for what is none, is not in C order or has
/// another byte order or dtype than this machine's engines take.
TensorView npy_view(std::string_view bytes);

/// The bytes of an uncompressed .npz, as numpy.savez writes it.
std::string npz_of(const std::vector<std::pair<std::string, TensorView>>& arrays);

}  // namespace gridpool
