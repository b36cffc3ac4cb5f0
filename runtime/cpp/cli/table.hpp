// Tables and numbers as people read them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gridpool::cli {

/// One line a row under a ruled header; the second and third columns are flush right.
std::string table(const std::vector<std::vector<std::string>>& rows);

/// "1.5 GB"
std::string size_text(double bytes);

/// "12,345"
std::string thousands(int64_t value);

}  // namespace gridpool::cli
