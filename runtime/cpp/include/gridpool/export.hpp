/* What the shared library exports; everything else stays hidden. C and C++. */
#pragma once

#if defined(_WIN32)
#define GRIDPOOL_API
#else
#define GRIDPOOL_API __attribute__((visibility("default")))
#endif
