// Errors that a user can cause and mend: one line that says what was got, what was expected and what to do.
// The same classes and the same wording as runtime/errors.py. Anything else that is thrown is a bug.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "gridpool/export.hpp"

namespace gridpool {

/// Root of the errors that a user can mend.
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

/// A question, or a context length, that the LLM half can't take.
class GRIDPOOL_API PromptError : public UserError {
 public:
  using UserError::UserError;
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

/// A '; did you mean "x"?' for a misspelt name, or the list of known ones where nothing is near.
GRIDPOOL_API std::string nearest(const std::string& name, std::vector<std::string> known);

}  // namespace gridpool
