#include "npy.hpp"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <stdexcept>

extern "C" {
#include <libavutil/crc.h>
}

#include "text.hpp"

namespace gridpool {
namespace {

constexpr std::string_view kCodes[] = {"<f4", "<f2", "<f8", "<i8", "<i4", "|i1", "|u1", "|b1"};  // in the order of DType

/// What follows `'key':` in the header, a Python dict of one line.
std::string_view value_of(std::string_view header, std::string_view key) {
  const size_t at = header.find("'" + std::string(key) + "':");
  if (at == header.npos) throw std::invalid_argument("its header has no " + std::string(key));
  header.remove_prefix(at + key.size() + 3);
  header.remove_prefix(std::min(header.find_first_not_of(' '), header.size()));
  return header;
}

void put(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
}

std::string npy_of(const TensorView& array) {
  std::vector<std::string> sizes;
  for (const int64_t size : array.shape) sizes.push_back(std::to_string(size));
  const std::string code(kCodes[static_cast<size_t>(array.dtype)]);
  std::string header = "{'descr': '" + code + "', 'fortran_order': False, 'shape': (" + join(sizes) + (sizes.size() == 1 ? ",), }" : "), }");
  header.append(63 - (10 + header.size()) % 64, ' ');  // the data begin at a multiple of 64 bytes
  header += '\n';
  std::string bytes("\x93NUMPY\1\0", 8);
  put(bytes, header.size(), 2);
  bytes += header;
  bytes.append(static_cast<const char*>(array.data), static_cast<size_t>(array.count()) * size_of(array.dtype));
  return bytes;
}

}  // namespace

TensorView npy_view(std::string_view bytes) {
  if (bytes.size() < 12 || bytes.substr(0, 6) != "\x93NUMPY") throw std::invalid_argument("not a .npy file");
  const auto byte = [&](size_t i) { return static_cast<size_t>(static_cast<unsigned char>(bytes[i])); };
  const size_t start = byte(6) == 1 ? 10 : 12;
  const size_t length = byte(8) | byte(9) << 8 | (byte(6) == 1 ? 0 : byte(10) << 16 | byte(11) << 24);
  if (length > bytes.size() - start) throw std::invalid_argument("its header is cut off");
  const std::string_view header = bytes.substr(start, length), data = bytes.substr(start + length);
  const std::string_view type = value_of(header, "descr");
  const auto* code = std::find(std::begin(kCodes), std::end(kCodes), type.substr(std::min<size_t>(1, type.size()), 3));
  if (code == std::end(kCodes)) throw std::invalid_argument("its dtype is not one that engines take");
  if (value_of(header, "fortran_order").substr(0, 5) != "False") throw std::invalid_argument("it is in Fortran order");
  TensorView view{static_cast<DType>(code - kCodes), {}, data.data()};
  const std::string_view shape = value_of(header, "shape");
  std::string numbers(shape.substr(0, shape.find(')')));
  std::replace_if(numbers.begin(), numbers.end(), [](char c) { return c < '0' || c > '9'; }, ' ');
  size_t needed = size_of(view.dtype);
  char* end = nullptr;
  for (const char* at = numbers.c_str();; at = end) {
    const size_t size = std::strtoull(at, &end, 10);
    if (end == at) break;
    if (size != 0 && needed > data.size() / size) throw std::invalid_argument("it has fewer values than its shape");
    needed *= size;
    view.shape.push_back(static_cast<int64_t>(size));
  }
  if (needed > data.size()) throw std::invalid_argument("it has fewer values than its shape");
  return view;
}

std::string npz_of(const std::vector<std::pair<std::string, TensorView>>& arrays) {
  const AVCRC* table = av_crc_get_table(AV_CRC_32_IEEE_LE);
  std::string out, directory;
  for (const auto& [name, array] : arrays) {
    const std::string file = name + ".npy", bytes = npy_of(array);
    if (bytes.size() > std::numeric_limits<uint32_t>::max() - out.size()) throw std::invalid_argument("more than 4 GiB in one .npz");
    const uint32_t check = ~av_crc(table, ~0u, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    std::string common;  // to the entry and the directory: zip 2.0, stored, 1 January 1980
    put(common, 20, 2), put(common, 0, 2), put(common, 0, 2), put(common, 0, 2), put(common, 0x21, 2);
    put(common, check, 4), put(common, bytes.size(), 4), put(common, bytes.size(), 4), put(common, file.size(), 2), put(common, 0, 2);
    put(directory, 0x02014b50, 4), put(directory, 20, 2);
    directory += common;
    put(directory, 0, 2), put(directory, 0, 2), put(directory, 0, 2), put(directory, 0, 4), put(directory, out.size(), 4);
    directory += file;
    put(out, 0x04034b50, 4);
    out += common + file + bytes;
  }
  const size_t at = out.size();
  out += directory;
  put(out, 0x06054b50, 4), put(out, 0, 4), put(out, arrays.size(), 2), put(out, arrays.size(), 2);
  put(out, directory.size(), 4), put(out, at, 4), put(out, 0, 2);
  return out;
}

}  // namespace gridpool
