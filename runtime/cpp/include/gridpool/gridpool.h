/* C ABI, for other languages: a bundle, tokens of a video, answers about it.
 *
 * Functions that can fail return NULL or a status other than 0; gridpool_last_error() then gives one line, per thread.
 * Strings are UTF-8. Objects are not safe for two threads at once.
 */
#ifndef GRIDPOOL_H
#define GRIDPOOL_H

#include <stddef.h>
#include <stdint.h>

#include "gridpool/export.hpp"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gridpool_chat gridpool_chat;
typedef struct gridpool_tokens gridpool_tokens;

enum {
  GRIDPOOL_OK = 0,
  GRIDPOOL_BUG = 1,        /* not the caller's fault */
  GRIDPOOL_USER_ERROR = 2, /* a file, a question or an option that the user can fix */
};

typedef struct {
  const char* backend;     /* "auto", "onnx" or "tensorrt"; NULL: auto */
  const char* device;      /* "cpu", "cuda" or "auto", the GPU if it can be used; NULL: auto */
  int threads;             /* CPU threads, 0: the backend's choice */
  const char* onnxruntime; /* path of libonnxruntime.so; NULL: found */
} gridpool_engine_options;

typedef struct {
  int64_t max_new_tokens; /* 0: 128 */
  double temperature;     /* 0: greedy */
  double top_p;           /* 0: 1 */
  int64_t seed;           /* below 0: random; equal seeds give equal answers in this library, but not those of Python */
} gridpool_ask_options;

/* Text of the answer as it is made, complete characters, `size` bytes and no NUL; return other than 0 to stop receiving it. */
typedef int (*gridpool_text)(const char* text, size_t size, void* user);

/* The library's version, e.g. "0.1.0". */
GRIDPOOL_API const char* gridpool_version(void);

/* What went wrong in this thread's latest failed call; "" if none failed. */
GRIDPOOL_API const char* gridpool_last_error(void);

/* Open a bundle with its vision encoder and LLM. options: NULL for the defaults. NULL if that fails. */
GRIDPOOL_API gridpool_chat* gridpool_open(const char* bundle, const gridpool_engine_options* options);
GRIDPOOL_API void gridpool_close(gridpool_chat* chat);

/* Compressed tokens of a video file; NULL if it can't be decoded. */
GRIDPOOL_API gridpool_tokens* gridpool_encode(gridpool_chat* chat, const char* video);
GRIDPOOL_API void gridpool_tokens_free(gridpool_tokens* tokens);

/* [rows, columns] float32 values, row by row, alive as long as `tokens`. */
GRIDPOOL_API const float* gridpool_tokens_data(const gridpool_tokens* tokens, int64_t* rows, int64_t* columns);

/* Answer a question about encoded tokens; each: NULL for no stream. Returns a status. */
GRIDPOOL_API int gridpool_ask(gridpool_chat* chat, const gridpool_tokens* tokens, const char* question,
                              const gridpool_ask_options* options, gridpool_text each, void* user);

#ifdef __cplusplus
}
#endif

#endif
