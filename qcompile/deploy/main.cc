// Runs this artifact from C++17; needs nothing but ONNX Runtime 1.17 or newer.
//
//   g++ -std=c++17 -O2 main.cc -I ORT/include -L ORT/lib -lonnxruntime -Wl,-rpath,ORT/lib -o main
//   cl /std:c++17 /O2 /EHsc main.cc /I ORT\include ORT\lib\onnxruntime.lib
//
// where ORT is the folder of a release of ONNX Runtime for C and C++.
//
// usage: main [--threads N] [--time SECONDS] [FOLDER]
//
// FOLDER is this one, `deploy` (default: the program's folder if the samples lie there, else the
// working folder). Opens ../model.onnx, runs the samples of sample_in.npz, compares with
// sample_out.npz, and times the first sample. Exit code 0: equal outputs, 1: different ones, 2: error.
//
// An .npz is a zip archive of .npy files; numpy.savez stores them uncompressed. The samples' arrays
// are named SAMPLE_TENSOR by number; `names` holds the tensors' names as JSON, `count` the number of
// samples.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

constexpr double kSameDb = 30.0;  // other CPUs round differently; different models differ by far more

[[noreturn]] void Fail(const std::string& text) { throw std::runtime_error(text); }

// ---- zip ------------------------------------------------------------------------------------------

using Bytes = std::vector<unsigned char>;

// Little-endian number of `size` bytes at `at`.
uint64_t Number(const Bytes& data, uint64_t at, int size) {
  if (at > data.size() || data.size() - at < static_cast<uint64_t>(size)) {
    Fail("the archive is cut off");
  }
  uint64_t value = 0;
  for (int i = size - 1; i >= 0; --i) value = value << 8 | data[at + i];
  return value;
}

Bytes ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Fail("'" + path.string() + "' cannot be read");
  return Bytes(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

struct Span {
  uint64_t at;
  uint64_t size;
};

// File name -> where its bytes lie. Sizes come from the central directory, since local headers may
// leave them to what follows the data.
std::map<std::string, Span> ReadDirectory(const Bytes& zip) {
  constexpr uint64_t kEnd = 22;
  if (zip.size() < kEnd) Fail("the archive is cut off");
  uint64_t end = zip.size() - kEnd;
  while (Number(zip, end, 4) != 0x06054b50) {
    if (end == 0) Fail("this is no zip archive");
    --end;
  }
  uint64_t count = Number(zip, end + 10, 2);
  uint64_t at = Number(zip, end + 16, 4);
  if ((count == 0xffff || at == 0xffffffff) && end >= 20 && Number(zip, end - 20, 4) == 0x07064b50) {
    const uint64_t end64 = Number(zip, end - 12, 8);
    count = Number(zip, end64 + 32, 8);
    at = Number(zip, end64 + 48, 8);
  }
  std::map<std::string, Span> found;
  for (uint64_t i = 0; i < count; ++i) {
    if (Number(zip, at, 4) != 0x02014b50) Fail("the archive's directory is damaged");
    const uint64_t method = Number(zip, at + 10, 2);
    uint64_t packed = Number(zip, at + 20, 4);
    uint64_t size = Number(zip, at + 24, 4);
    const uint64_t name_size = Number(zip, at + 28, 2);
    const uint64_t extra_size = Number(zip, at + 30, 2);
    const uint64_t comment_size = Number(zip, at + 32, 2);
    uint64_t local = Number(zip, at + 42, 4);
    const uint64_t extra_end = at + 46 + name_size + extra_size;
    Number(zip, extra_end, 0);
    std::string name(zip.begin() + at + 46, zip.begin() + at + 46 + name_size);
    if (method != 0) Fail(name + " is compressed; numpy.savez stores");
    for (uint64_t e = at + 46 + name_size; e + 4 <= extra_end;) {
      uint64_t field = e + 4;
      if (Number(zip, e, 2) == 1) {  // zip64: only what did not fit above, in this order
        for (uint64_t* value : {&size, &packed, &local}) {
          if (*value != 0xffffffff) continue;
          *value = Number(zip, field, 8);
          field += 8;
        }
      }
      e += 4 + Number(zip, e + 2, 2);
    }
    const uint64_t data = local + 30 + Number(zip, local + 26, 2) + Number(zip, local + 28, 2);
    if (data > zip.size() || zip.size() - data < size) Fail("the archive is cut off");
    found[name] = {data, size};
    at = extra_end + comment_size;
  }
  return found;
}

// ---- npy ------------------------------------------------------------------------------------------

struct Array {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t item = 0;  // bytes of an element
  std::vector<int64_t> shape;
  std::vector<unsigned char> data;
};

struct Kind {
  const char* descr;
  ONNXTensorElementDataType type;
  size_t item;
};

constexpr Kind kKinds[] = {
    {"<f4", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},  {"<f8", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8},
    {"<f2", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2}, {"<i8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8},
    {"<i4", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4},  {"<i2", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16, 2},
    {"|i1", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1},   {"|u1", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1},
    {"<u2", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16, 2}, {"<u4", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32, 4},
    {"<u8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64, 8}, {"|b1", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1},
};

// What follows `'key':` in the header, a Python dict literal that numpy itself wrote.
std::string Entry(const std::string& header, const std::string& key) {
  const size_t at = header.find("'" + key + "'");
  const size_t colon = at == std::string::npos ? at : header.find(':', at);
  if (colon == std::string::npos) Fail("an .npy header has no " + key);
  const size_t start = header.find_first_not_of(' ', colon + 1);
  return start == std::string::npos ? "" : header.substr(start);
}

// Row-major copy of column-major data: numpy stores transposed arrays as they lie in memory.
std::vector<unsigned char> RowMajor(const Array& array) {
  std::vector<unsigned char> rows(array.data.size());
  std::vector<int64_t> index(array.shape.size(), 0);
  const size_t count = array.data.size() / array.item;
  for (size_t to = 0; to < count; ++to) {
    size_t from = 0;
    for (size_t axis = array.shape.size(); axis-- > 0;) {
      from = from * static_cast<size_t>(array.shape[axis]) + static_cast<size_t>(index[axis]);
    }
    std::memcpy(&rows[to * array.item], &array.data[from * array.item], array.item);
    for (size_t axis = array.shape.size(); axis-- > 0;) {
      if (++index[axis] < array.shape[axis]) break;
      index[axis] = 0;
    }
  }
  return rows;
}

Array ParseNpy(const Bytes& zip, Span span, const std::string& name) {
  if (span.size < 12 || std::memcmp(&zip[span.at], "\x93NUMPY", 6) != 0) Fail(name + " is no .npy");
  const int wide = zip[span.at + 6] == 1 ? 2 : 4;  // version 1: 16-bit length, 2 and 3: 32-bit
  const uint64_t header_size = Number(zip, span.at + 8, wide);
  const uint64_t start = 8 + static_cast<uint64_t>(wide) + header_size;
  if (start > span.size) Fail(name + " is cut off");
  const std::string header(zip.begin() + span.at + 8 + wide, zip.begin() + span.at + start);

  Array array;
  const std::string descr = Entry(header, "descr");
  for (const Kind& kind : kKinds) {
    if (descr.compare(1, 3, kind.descr) == 0) {
      array.type = kind.type;
      array.item = kind.item;
    }
  }
  if (array.item == 0) Fail(name + ": arrays of dtype " + descr.substr(0, 8) + " are not read here");
  size_t count = 1;
  const std::string shape = Entry(header, "shape");
  for (size_t i = 1; i < shape.size() && shape[i] != ')';) {
    if (shape[i] < '0' || shape[i] > '9') {
      ++i;
      continue;
    }
    size_t used = 0;
    array.shape.push_back(std::stoll(shape.substr(i), &used));
    count *= static_cast<size_t>(array.shape.back());
    i += used;
  }
  if (span.size - start < count * array.item) Fail(name + " is cut off");
  const auto first = zip.begin() + static_cast<std::ptrdiff_t>(span.at + start);
  array.data.assign(first, first + static_cast<std::ptrdiff_t>(count * array.item));
  if (Entry(header, "fortran_order").compare(0, 4, "True") == 0) array.data = RowMajor(array);
  return array;
}

// ---- samples --------------------------------------------------------------------------------------

void AppendUtf8(std::string& text, unsigned long code) {
  const auto put = [&text](unsigned long byte) { text.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

// A JSON list of strings.
std::vector<std::string> ParseNames(const std::string& json) {
  std::vector<std::string> names;
  const auto hex4 = [&json](size_t at) {
    if (at + 4 > json.size()) Fail("`names` is damaged");
    return std::stoul(json.substr(at, 4), nullptr, 16);
  };
  for (size_t i = json.find('"'); i != std::string::npos; i = json.find('"', i + 1)) {
    std::string name;
    for (++i; i < json.size() && json[i] != '"'; ++i) {
      if (json[i] != '\\') {
        name.push_back(json[i]);
      } else if (json[++i] == 'u') {
        unsigned long code = hex4(i + 1);
        i += 4;
        if (code >= 0xd800 && code < 0xdc00 && json.compare(i + 1, 2, "\\u") == 0) {
          code = 0x10000 + ((code - 0xd800) << 10) + (hex4(i + 3) - 0xdc00);
          i += 6;
        }
        AppendUtf8(name, code);
      } else {
        const char* const known = std::strchr("b\bf\fn\nr\rt\t", json[i]);
        name.push_back(known != nullptr ? known[1] : json[i]);
      }
    }
    names.push_back(name);
  }
  return names;
}

struct Samples {
  std::vector<std::string> names;
  std::vector<std::vector<Array>> arrays;  // sample -> tensor, in the order of names
};

Samples ReadSamples(const fs::path& path) {
  const Bytes zip = ReadFile(path);
  const auto directory = ReadDirectory(zip);
  const auto read = [&](const std::string& name) {
    const auto found = directory.find(name + ".npy");
    if (found == directory.end()) Fail("'" + path.string() + "' has no " + name);
    return ParseNpy(zip, found->second, name);
  };
  Samples samples;
  const Array text = read("names");
  samples.names = ParseNames(std::string(text.data.begin(), text.data.end()));
  const Array stored = read("count");
  const Bytes number(stored.data.begin(), stored.data.end());
  const uint64_t count = Number(number, 0, static_cast<int>(stored.item));
  for (uint64_t i = 0; i < count; ++i) {
    std::vector<Array>& sample = samples.arrays.emplace_back();
    for (size_t j = 0; j < samples.names.size(); ++j) {
      sample.push_back(read(std::to_string(i) + "_" + std::to_string(j)));
    }
  }
  if (samples.arrays.empty()) Fail("'" + path.string() + "' has no samples");
  return samples;
}

// ---- running and comparing ------------------------------------------------------------------------

std::vector<const char*> Pointers(const std::vector<std::string>& names) {
  std::vector<const char*> pointers;
  for (const std::string& name : names) pointers.push_back(name.c_str());
  return pointers;
}

std::vector<Ort::Value> Feed(std::vector<Array>& sample) {
  static const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  static unsigned char nothing[8] = {};  // tensors without elements still need an address
  std::vector<Ort::Value> values;
  for (Array& array : sample) {
    void* data = array.data.empty() ? nothing : array.data.data();
    values.push_back(Ort::Value::CreateTensor(memory, data, array.data.size(), array.shape.data(),
                                              array.shape.size(), array.type));
  }
  return values;
}

double Half(uint16_t bits) {
  const int exponent = bits >> 10 & 0x1f;
  const int fraction = bits & 0x3ff;
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == 31) return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

bool IsFloat(ONNXTensorElementDataType type) {
  return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE ||
         type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
}

double Real(const unsigned char* data, ONNXTensorElementDataType type, size_t i) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE) {
    double value;
    std::memcpy(&value, data + 8 * i, 8);
    return value;
  }
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) {
    uint16_t bits;
    std::memcpy(&bits, data + 2 * i, 2);
    return Half(bits);
  }
  float value;
  std::memcpy(&value, data + 4 * i, 4);
  return value;
}

// One output over all samples: sums of squares, for its SQNR, and the elements that differ.
struct Comparison {
  double signal = 0;
  double noise = 0;
  uint64_t elements = 0;
  uint64_t different = 0;
  bool is_float = false;
  std::string fault;

  void Add(const Array& expected, const Ort::Value& found) {
    const auto info = found.GetTensorTypeAndShapeInfo();
    is_float = IsFloat(expected.type);
    if (info.GetElementType() != expected.type || info.GetShape() != expected.shape) {
      fault = "another shape or type than stored";
      return;
    }
    const auto* data = static_cast<const unsigned char*>(found.GetTensorRawData());
    const size_t count = expected.data.size() / expected.item;
    elements += count;
    for (size_t i = 0; i < count; ++i) {
      const size_t at = i * expected.item;
      if (std::memcmp(&expected.data[at], data + at, expected.item) != 0) ++different;
      if (!is_float) continue;
      const double wanted = Real(expected.data.data(), expected.type, i);
      const double error = wanted - Real(data, expected.type, i);
      signal += wanted * wanted;
      noise += error * error;
    }
  }

  // +Inf for equal outputs; NaN in either makes it NaN, which is never equal enough.
  double Db() const {
    if (noise == 0) return std::numeric_limits<double>::infinity();
    return 10 * std::log10(signal / noise);
  }

  bool Same() const { return fault.empty() && (!is_float || Db() >= kSameDb); }
};

bool Compare(Ort::Session& session, Samples& in, const Samples& out) {
  if (in.arrays.size() != out.arrays.size()) Fail("sample_in.npz and sample_out.npz do not belong together");
  const auto input_names = Pointers(in.names);
  const auto output_names = Pointers(out.names);
  std::vector<Comparison> compared(out.names.size());
  for (size_t i = 0; i < in.arrays.size(); ++i) {
    const auto feed = Feed(in.arrays[i]);
    const auto found = session.Run(Ort::RunOptions{nullptr}, input_names.data(), feed.data(), feed.size(),
                                   output_names.data(), output_names.size());
    for (size_t j = 0; j < found.size(); ++j) compared[j].Add(out.arrays[i][j], found[j]);
  }
  bool same = true;
  std::printf("%zu stored samples\n", in.arrays.size());
  for (size_t j = 0; j < compared.size(); ++j) {
    const Comparison& one = compared[j];
    same = same && one.Same();
    std::printf("output %s: ", out.names[j].c_str());
    if (!one.fault.empty()) {
      std::printf("%s", one.fault.c_str());
    } else if (one.is_float) {
      std::printf("agrees to %.1f dB", one.Db());
    } else {
      std::printf("%llu of %llu integers differ", static_cast<unsigned long long>(one.different),
                  static_cast<unsigned long long>(one.elements));
    }
    std::printf("%s\n", one.Same() ? "" : "  DIFFERENT");
  }
  return same;
}

// Median milliseconds of one run, over groups of three.
double Time(Ort::Session& session, Samples& in, const Samples& out, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto input_names = Pointers(in.names);
  const auto output_names = Pointers(out.names);
  const auto feed = Feed(in.arrays[0]);
  const auto run = [&] {
    session.Run(Ort::RunOptions{nullptr}, input_names.data(), feed.data(), feed.size(), output_names.data(),
                output_names.size());
  };
  run();
  std::vector<double> times;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (Clock::now() < end || times.size() < 5) {
    const auto start = Clock::now();
    for (int i = 0; i < 3; ++i) run();
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count() / 3);
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

int Main(int argc, char** argv) {
  int threads = 0;
  double seconds = 2.0;
  fs::path folder = fs::path(argv[0]).parent_path();
  if (!fs::exists(folder / "sample_in.npz")) folder = fs::current_path();
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--threads" && i + 1 < argc) {
      threads = std::atoi(argv[++i]);
    } else if (word == "--time" && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else if (word.rfind("-", 0) == 0) {
      Fail("usage: main [--threads N] [--time SECONDS] [FOLDER]");
    } else {
      folder = word;
    }
  }
  Samples in = ReadSamples(folder / "sample_in.npz");
  const Samples out = ReadSamples(folder / "sample_out.npz");
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "artifact");
  Ort::SessionOptions options;
  if (threads > 0) options.SetIntraOpNumThreads(threads);
  Ort::Session session(env, (folder / ".." / "model.onnx").c_str(), options);
  const bool same = Compare(session, in, out);
  std::printf("artifact: %.3f ms p50, onnxruntime %s\n", Time(session, in, out, seconds),
              OrtGetApiBase()->GetVersionString());
  return same ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
