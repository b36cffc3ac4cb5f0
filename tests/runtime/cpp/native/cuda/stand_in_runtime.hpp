// A CUDA runtime without a GPU, for the programs that check on a GPU: what they do wrong themselves shows before one is at hand.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

/// Run `work` in stream order: now, or with every launch of the graph that is being captured.
void stand_in_enqueue(cudaStream_t stream, std::function<void()> work);
