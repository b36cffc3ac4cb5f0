#include "kernels.cuh"

template gridpool::Kernel gridpool::kernel_for<gridpool::BFloat16>(const Choice&, bool);
