#include "kernels.cuh"

template gridpool::Kernel gridpool::kernel_for<gridpool::Float>(const Choice&, bool);
