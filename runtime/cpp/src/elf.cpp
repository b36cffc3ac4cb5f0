#include "elf.hpp"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstring>
#include <fstream>
#include <vector>

#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

std::string machine_name(unsigned machine) {
  switch (machine) {
    case EM_X86_64: return "x86-64";
    case EM_AARCH64: return "64-bit ARM";
    case EM_386: return "32-bit x86";
    case EM_ARM: return "32-bit ARM";
    default: return concat("machine ", machine);
  }
}

/// The ELF header of the code that runs here.
const ElfW(Ehdr)* own_header() {
  Dl_info info{};
  const bool found = ::dladdr(reinterpret_cast<const void*>(&own_header), &info) != 0;
  return found ? static_cast<const ElfW(Ehdr)*>(info.dli_fbase) : nullptr;
}

}  // namespace

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
  if (stream.gcount() < EI_NIDENT) return "is truncated";
  const ElfW(Ehdr)* here = own_header();
  // The machine stands at the same place in 32-bit and 64-bit files.
  if (here && (header.e_ident[EI_DATA] != here->e_ident[EI_DATA] || header.e_machine != here->e_machine)) {
    return "is for " + machine_name(header.e_machine) + ", this process runs " + machine_name(here->e_machine);
  }
  if (here && header.e_ident[EI_CLASS] != here->e_ident[EI_CLASS]) return "is for processes of another word size";
  if (static_cast<size_t>(stream.gcount()) < sizeof header) return "is truncated";
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

}  // namespace gridpool
