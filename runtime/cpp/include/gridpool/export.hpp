/* What the shared library exports; everything else stays hidden. C and C++. */
#pragma once

#define GRIDPOOL_API __attribute__((visibility("default")))
