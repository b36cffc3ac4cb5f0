// What needs no bundle and no video. The rest is compared with the Python runtime, in tests/runtime/cpp.
#include <gridpool/gridpool.hpp>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "bytes.hpp"
#include "clock.hpp"
#include "files.hpp"
#include "half.hpp"
#include "json.hpp"
#include "message_of.hpp"
#include "npy.hpp"
#include "output.hpp"
#include "picture.hpp"
#include "text.hpp"

using namespace gridpool;
namespace fs = std::filesystem;

extern "C" int c_header_works(void);

namespace {

class Folder : public ::testing::Test {
 protected:
  void SetUp() override {
    path = fs::temp_directory_path() / ("gridpool-units-" + std::to_string(::getpid()));
    fs::create_directories(path);
  }
  void TearDown() override { fs::remove_all(path); }
  fs::path path;
};

TEST(Half, EveryFiniteHalfSurvivesTheWayThroughFloat) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if ((half & 0x7c00) == 0x7c00 && half & 0x3ff) continue;  // NaN
    ASSERT_EQ(half_of_float(float_of_half(half)), half);
  }
}

TEST(Half, RoundsToTheNearestWithTiesToEven) {
  EXPECT_EQ(half_of_float(1.0f + 0x1p-11f), 0x3c00);           // half a unit: down to even
  EXPECT_EQ(half_of_float(1.0f + 3 * 0x1p-11f), 0x3c02);       // one and a half: up to even
  EXPECT_EQ(half_of_float(1.0f + 0x1.01p-11f), 0x3c01);        // past half
  EXPECT_EQ(half_of_float(65519.0f), 0x7bff);                  // the largest
  EXPECT_EQ(half_of_float(65520.0f), 0x7c00);                  // infinity
  EXPECT_EQ(half_of_float(0x1p-25f), 0);                       // half of the least subnormal
  EXPECT_EQ(half_of_float(-0x1.8p-24f), 0x8002);
  EXPECT_TRUE(std::isnan(float_of_half(half_of_float(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Text, ReplacesEachLongestPrefixOfACharacter) {
  EXPECT_EQ(lossy_utf8("a\xe2\x82z"), "a\xef\xbf\xbdz");              // a cut-off three-byte character is one replacement
  EXPECT_EQ(lossy_utf8("\xed\xa0\x80"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");  // a surrogate is three
  EXPECT_EQ(lossy_utf8("\xf0\x9f\x98\x80"), "\xf0\x9f\x98\x80");
  EXPECT_FALSE(is_utf8("\xc0\x80"));                                   // an overlong NUL
  EXPECT_FALSE(is_utf8("\xf4\x90\x80\x80"));                           // past U+10FFFF
}

TEST(Json, IsShownOnOneShortLineHoweverLargeItIs) {
  EXPECT_EQ(shown(Json("it's\n\xc3\xa9")), "\"it's\\n\\u00e9\"");
  EXPECT_EQ(shown(Json{224, 0}), "[224,0]");
  EXPECT_EQ(shown(Json::object({{"a", 1}})), "an object");
  EXPECT_LE(shown(Json(std::string(1 << 20, 'x'))).size(), 170u);
  Json deep = 1;
  for (int i = 0; i < 100000; ++i) deep = Json::array({std::move(deep)});
  EXPECT_EQ(shown(deep), "an array of 1");
}

TEST(Table, RulesItsHeaderAndSetsNumbersFlushRight) {
  EXPECT_EQ(cli::table({{"stage", "median", "p90", ""}, {"é", "1", "22.5", "s"}}),
            "stage  median   p90\n"
            "─────  ──────  ────  ─\n"
            "é           1  22.5  s");
  EXPECT_EQ(cli::size_text(1234567), "1.2 MB");
  EXPECT_EQ(cli::thousands(-1234567), "-1,234,567");
}

TEST(Hash, IsSha256) {
  EXPECT_EQ(sha256_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST_F(Folder, AnAbandonedFileLeavesTheOldOne) {
  std::ofstream(path / "out") << "old";
  {
    AtomicFile file(path / "out");
    file.write("new");
  }
  EXPECT_EQ(read_file(path / "out"), "old");
  AtomicFile file(path / "out");
  file.write("new");
  file.commit();
  EXPECT_EQ(read_file(path / "out"), "new");
  EXPECT_EQ(std::distance(fs::directory_iterator(path), fs::directory_iterator()), 1);
}

TEST_F(Folder, AnOutputThatIsADirectoryIsRefused) {
  EXPECT_EQ(message_of<OutputError>([&] { AtomicFile file(path); }), fs::canonical(path).string() + " is a directory; choose another name for the output");
}

TEST(Npy, ReadsWhatItWrites) {
  const std::vector<int64_t> values = {1, -2, 3, 4, 5, 6};
  const std::string zip = npz_of({{"a", {DType::int64, {2, 3}, values.data()}}});
  const TensorView view = npy_view(std::string_view(zip).substr(zip.find("\x93NUMPY")));
  EXPECT_EQ(view.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(view.data, values.data(), 48), 0);
}

TEST(Npy, RefusesWhatItCannotTrust) {
  const auto refused = [](const std::string& bytes) { return message_of<std::invalid_argument>([&] { npy_view(bytes); }); };
  const auto file = [](std::string header) {
    header.insert(0, std::string("\x93NUMPY\1\0", 8) + static_cast<char>(header.size()) + '\0');
    return header;
  };
  EXPECT_EQ(refused("PK"), "not a .npy file");
  EXPECT_EQ(refused(file("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 9), }")), "it has fewer values than its shape");
  EXPECT_EQ(refused(file("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }")), "its dtype is not one that engines take");
  EXPECT_EQ(refused(file("{'descr': '<f4', 'fortran_order': True, 'shape': (0,), }")), "it is in Fortran order");
  EXPECT_EQ(refused(file("{'descr': '<f4', 'fortran_order': False, }")), "its header has no shape");
}

TEST(Feeds, AreCheckedByNameDtypeAndShape) {
  const std::vector<TensorSpec> specs = {{"a", DType::float32, {{1, ""}, {-1, "S"}}}, {"b", DType::int64, {{-1, "S"}}}};
  const float one[4] = {};
  const int64_t two[4] = {};
  const auto refused = [&](const Feeds& feeds) { return message_of<EngineError>([&] { check_feeds(specs, feeds); }); };
  EXPECT_EQ(refused({{"a", {DType::float32, {1, 3}, one}}, {"b", {DType::int64, {3}, two}}}), "nothing was thrown");
  EXPECT_EQ(refused({{"a", {DType::float32, {1, 3}, one}}}), "inputs are a; the graph takes a, b");
  EXPECT_EQ(refused({{"a", {DType::float16, {1, 3}, one}}, {"b", {DType::int64, {3}, two}}}), "a is float16, the graph takes float32");
  EXPECT_EQ(refused({{"a", {DType::float32, {1, 3}, one}}, {"b", {DType::int64, {4}, two}}}), "b has shape [4], the graph takes [S]");
  EXPECT_EQ(refused({{"a", {DType::float32, {3}, one}}, {"b", {DType::int64, {3}, two}}}), "a has shape [3], the graph takes [1, S]");
}

TEST(Engine, UnknownBackendsAndDevicesAreRefused) {
  const Bundle bundle;
  EXPECT_EQ(message_of<EngineError>([&] { open_engine(bundle, kVision, "onix"); }), "backend is \"onix\", expected auto, onnx or tensorrt");
  EXPECT_EQ(message_of<EngineError>([&] { open_engine(bundle, kVision, "auto", {"gpu", 0, ""}); }), "device is \"gpu\", expected auto, cpu or cuda");
  EXPECT_EQ(message_of<EngineError>([&] { open_engine(bundle, kVision, "tensorrt", {"cpu", 0, ""}); }),
            "backend tensorrt can't run here: TensorRT engines run on a GPU, not on cpu; pass --device cuda");
}

TEST(Prefill, PiecesAreLongerOnAGpuAndLongestWithFlashAttention) {
  EXPECT_EQ(prefill_chunk("cpu", "portable"), 256);
  EXPECT_EQ(prefill_chunk("cpu", "flash"), 256);
  EXPECT_EQ(prefill_chunk("cuda", "portable"), 1024);
  EXPECT_EQ(prefill_chunk("cuda", "standard"), 1024);
  EXPECT_EQ(prefill_chunk("cuda", "flash"), 8192);
}

TEST(CHeader, IsCAndReportsFailures) { EXPECT_EQ(c_header_works(), 1); }

TEST(Clock, TakesUpANewClockAtAKeyframe) {
  Clock clock;
  EXPECT_EQ(clock.seconds(100.0, true, 0.5), 0.0);
  EXPECT_EQ(clock.seconds(101.0, false, 0.5), 1.0);
  EXPECT_EQ(clock.seconds(100.5, false, 0.5), 1.0);  // never back
  EXPECT_EQ(clock.seconds(std::nullopt, false, 0.5), 1.5);
  EXPECT_EQ(clock.seconds(7.0, true, 0.5), 2.0);
  EXPECT_EQ(clock.seconds(8.0, false, 0.5), 3.0);
}

TEST(Bytes, ReadNothingOutsideTheirSource) {
  ByteSource bytes(std::string("\x01\x02\x03\x04"));
  EXPECT_EQ(bytes.number(0, 2), 0x0102u);
  EXPECT_EQ(bytes.number(2, 2, Endian::little), 0x0403u);
  EXPECT_FALSE(bytes.number(3, 2));
  EXPECT_FALSE(bytes.number(~uint64_t{0}, 8));
  EXPECT_EQ(bytes.read(2, ~uint64_t{0}).size(), 2u);
  EXPECT_EQ(ByteSource(std::string(2 << 20, 'x')).read(0, 2 << 20).size(), size_t{1} << 20);
}

TEST(Exif, IsReadFromEitherByteOrderAndNoFurtherThanItGoes) {
  const auto orientation = [](std::string tiff) {
    ByteSource source(std::move(tiff));
    return tiff_orientation(source);
  };
  const std::string big("MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0", 22);
  const std::string little("II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x05\0\0\0", 22);
  EXPECT_EQ(orientation(big), 6);
  EXPECT_EQ(orientation(little), 5);
  for (size_t length = 0; length < big.size(); ++length) EXPECT_FALSE(orientation(big.substr(0, length)));
  EXPECT_EQ(xmp_orientation("<a tiff:Orientation=\"8\"/>"), 8);
  EXPECT_EQ(xmp_orientation("<tiff:Orientation>3<"), 3);
  EXPECT_FALSE(xmp_orientation("tiff:Orientation=\""));
}

}  // namespace
