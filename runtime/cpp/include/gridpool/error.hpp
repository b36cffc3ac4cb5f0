// Errors that a user can cause and fix: one line that says what was got, what was expected and what to do.
// The classes are those of the Python runtime. Anything else that is thrown is a bug.
#pragma once

#include <stdexcept>

#include "gridpool/export.hpp"

namespace gridpool {

/// Root of the errors that a user can fix.
class GRIDPOOL_API UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A bundle that is missing, altered, incomplete or of a newer schema.
class GRIDPOOL_API BundleError : public UserError {
 public:
  using UserError::UserError;
};

/// A file or stream that can't be decoded to the frames that were asked for.
class GRIDPOOL_API VideoError : public UserError {
 public:
  using UserError::UserError;
};

/// An engine that can't be loaded or fed here.
class GRIDPOOL_API EngineError : public UserError {
 public:
  using UserError::UserError;
};

/// An engine that returned infinities or NaN.
class GRIDPOOL_API NonFiniteError : public EngineError {
 public:
  using EngineError::EngineError;
};

/// A question, or a context length, that the LLM can't take.
class GRIDPOOL_API PromptError : public UserError {
 public:
  using UserError::UserError;
};

/// A prompt, or an answer's length, that the LLM's context can't hold.
class GRIDPOOL_API ContextError : public PromptError {
 public:
  using PromptError::PromptError;
};

/// A file that can't be written where it was asked for.
class GRIDPOOL_API OutputError : public UserError {
 public:
  using UserError::UserError;
};

/// A command line with an option, argument or value that the command does not have.
class GRIDPOOL_API UsageError : public UserError {
 public:
  using UserError::UserError;
};

}  // namespace gridpool
