#include "library.hpp"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstddef>
#include <cstring>
#include <fstream>
#include <vector>

#include "gridpool/error.hpp"
#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

/// What the loader knows of this code: its file and where it is mapped; nothing in a static program.
Dl_info own_info() {
  Dl_info info{};
  ::dladdr(reinterpret_cast<const void*>(&own_info), &info);
  return info;
}

/// The path of this code's file; "" in a static program.
std::string own_file() {
  const char* name = own_info().dli_fname;
  return name ? name : "";
}

std::string machine_name(unsigned machine) {
  switch (machine) {
    case EM_X86_64: return "x86-64";
    case EM_AARCH64: return "64-bit ARM";
    default: return concat("machine ", machine);
  }
}

/// Why `file` can't be loaded into this process, as a clause after its name; "" if it can. A truncated library
/// must not reach dlopen, which maps what is missing and ends the process with SIGBUS.
std::string elf_fault(const fs::path& file) {
  std::error_code failed;
  const fs::file_status status = fs::status(file, failed);
  if (!fs::exists(status)) return "does not exist";
  if (!fs::is_regular_file(status)) return fs::is_directory(status) ? "is a directory, expected the library in it" : "is not a regular file";
  const uintmax_t size = fs::file_size(file, failed);
  std::ifstream stream(file, std::ios::binary);
  if (failed || !stream) return "can't be read; check its permissions";

  ElfW(Ehdr) header{};
  stream.read(reinterpret_cast<char*>(&header), sizeof header);
  if (stream.gcount() < SELFMAG || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return "is not a shared library";
  if (static_cast<size_t>(stream.gcount()) < sizeof header) return "is truncated";
  const auto* here = static_cast<const ElfW(Ehdr)*>(own_info().dli_fbase);
  // The machine stands at the same place in 32-bit and 64-bit files.
  if (here && (header.e_ident[EI_DATA] != here->e_ident[EI_DATA] || header.e_machine != here->e_machine)) {
    return "is for " + machine_name(header.e_machine) + ", this process runs " + machine_name(here->e_machine);
  }
  if (here && header.e_ident[EI_CLASS] != here->e_ident[EI_CLASS]) return "is for processes of another word size";
  if (header.e_type != ET_DYN || header.e_phentsize != sizeof(ElfW(Phdr))) return "is not a shared library";

  std::vector<ElfW(Phdr)> segments(header.e_phnum);
  const auto table = static_cast<std::streamsize>(segments.size() * sizeof(ElfW(Phdr)));
  stream.seekg(static_cast<std::streamoff>(header.e_phoff));
  stream.read(reinterpret_cast<char*>(segments.data()), table);
  if (stream.gcount() != table) return "is truncated";
  for (const auto& segment : segments) {
    if (segment.p_type == PT_LOAD && (segment.p_offset > size || segment.p_filesz > size - segment.p_offset)) {
      return concat("is truncated: ", size, " bytes, expected at least ", segment.p_offset + segment.p_filesz);
    }
  }
  return "";
}

/// The directories in which the loader looks for a library of this code: LD_LIBRARY_PATH, its RUNPATH, the system's.
std::vector<fs::path> loader_directories() {
  std::vector<fs::path> found;
  void* handle = ::dlopen(own_file().c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (!handle) handle = ::dlopen(nullptr, RTLD_LAZY);
  Dl_serinfo count{};
  if (!handle || ::dlinfo(handle, RTLD_DI_SERINFOSIZE, &count) != 0) return found;
  std::vector<std::max_align_t> memory(count.dls_size / sizeof(std::max_align_t) + 1);
  auto* paths = reinterpret_cast<Dl_serinfo*>(memory.data());
  *paths = count;
  if (::dlinfo(handle, RTLD_DI_SERINFO, paths) != 0) return found;
  for (unsigned i = 0; i < paths->dls_cnt; ++i) found.emplace_back(paths->dls_serpath[i].dls_name);
  return found;
}

/// The path at which the loader would find the file `name`, or `name` itself if that is left to the loader's cache.
/// EngineError if no file of that name can be loaded.
std::string looked_up(const std::string& name) {
  std::string refused;
  for (const auto& directory : loader_directories()) {
    const fs::path file = directory / name;
    std::error_code failed;
    if (!fs::exists(file, failed)) continue;
    const std::string fault = elf_fault(file);
    if (fault.empty()) return file.string();
    refused += (refused.empty() ? "" : "; ") + file.string() + " " + fault;
  }
  if (!refused.empty()) throw EngineError(refused);
  return name;
}

}  // namespace

Library::Library(const std::string& name) : name_(name) {
  const bool is_path = name.find('/') != name.npos;
  const std::string fault = is_path ? elf_fault(name) : "";
  if (!fault.empty()) throw EngineError(name + " " + fault);
  handle_ = ::dlopen(is_path ? name.c_str() : looked_up(name).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle_) {
    const char* why = ::dlerror();
    throw EngineError(why ? why : name + " does not load");
  }
}

void* Library::address(const char* symbol) const {
  void* found = ::dlsym(handle_, symbol);
  if (!found) throw EngineError(name_ + " has no " + symbol + "; expected another release of this library");
  return found;
}

fs::path own_directory() {
  std::error_code failed;
  return fs::weakly_canonical(own_file(), failed).parent_path();
}

}  // namespace gridpool
