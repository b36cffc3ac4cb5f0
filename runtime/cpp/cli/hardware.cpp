#include "hardware.hpp"

#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>

extern "C" {
#include <libavutil/cpu.h>
}

namespace gridpool::cli {
namespace {

/// What follows `key` on the first line of `file` that starts with it.
std::string line_of(const char* file, const std::string& key) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (line.compare(0, key.size(), key) == 0) return line.substr(line.find_first_not_of(" \t:", key.size()));
  }
  return "";
}

std::string cpu_name(const utsname& system) {
  std::string name = line_of("/proc/cpuinfo", "model name");
  if (name.empty()) {  // a board's CPU may have no name, the board has one
    std::ifstream board("/proc/device-tree/model");
    std::getline(board, name, '\0');
  }
  return name.empty() ? system.machine : name;
}

}  // namespace

OrderedJson hardware(const EngineOptions& options) {
  utsname system{};
  uname(&system);
  return {{"cpu", cpu_name(system)},
          {"cores", av_cpu_count()},
          {"threads", options.threads ? OrderedJson(options.threads) : OrderedJson("backend's choice")},
          {"memory", static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE)},
          {"device", options.device},
          {"system", std::string(system.sysname) + " " + system.machine},
          {"compiler", std::string("C++ ") + __VERSION__}};
}

void reset_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }

int64_t peak_rss() { return std::stoll("0" + line_of("/proc/self/status", "VmHWM")) << 10; }

}  // namespace gridpool::cli
