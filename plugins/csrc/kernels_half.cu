#include "kernels.cuh"

template gridpool::Kernel gridpool::kernel_for<gridpool::Half>(const Choice&, bool);
