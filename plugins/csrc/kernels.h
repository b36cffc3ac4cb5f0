// Kernels of the library by what `choose` says; kernels_*.cu hold those of a dtype, so that they are compiled side by side.
#pragma once

#include "plan.h"

namespace gridpool {

using Kernel = void (*)(Args, const int*, const Vec*, Vec*, Vec*, Launch);

// squares: of norms of order 2.
template <class T>
Kernel kernel_for(const Choice& choice, bool squares);

}  // namespace gridpool
