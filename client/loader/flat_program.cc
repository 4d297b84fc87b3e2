#include "client/loader/flat_program.h"

#include <sys/mman.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace mapbroker::loader {
namespace {

// The header, as in the kernel's flat.h: words in network order.
constexpr char kMagic[] = {'b', 'F', 'L', 'T'};
constexpr std::uint64_t kHeaderSize = 64;
constexpr std::uint32_t kVersion = 4, kOldVersion = 2;
enum Flags : std::uint32_t { kRam = 1, kGotPic = 2, kGzip = 4, kGzipData = 8, kTrace = 16 };
// Words of the header that matter, by their place.
enum Word { kRevision = 1, kEntry, kDataStart, kDataEnd, kBssEnd, kStackSize, kRelocStart, kRelocCount, kFlags };

// The kernel refuses sizes of 256 MiB and more as a sign of a broken header.
constexpr std::uint64_t kSizeLimit = std::uint64_t{1} << 28;
// The kernel aligns the data so, in bytes; before it lies a word for the loader (MAX_SHARED_LIBS).
constexpr std::uint64_t kDataAlignment = 32;
// The kernel looks at 24 bits of the entry point.
constexpr std::uint32_t kEntryMask = 0x00ff'ffff;
// Deflate makes at most so many bytes of one: what is said to be larger is not there.
constexpr std::uint64_t kMostInflation = 1032;

absl::Status Reason(const std::string& sentence) { return absl::InvalidArgumentError(sentence); }

std::uint32_t Load(const std::byte* at, ByteOrder order) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    value = value << 8 | std::to_integer<std::uint32_t>(at[order == ByteOrder::kBig ? i : 3 - i]);
  }
  return value;
}

void Store(std::byte* at, ByteOrder order, std::uint32_t value) {
  for (std::size_t i = 0; i < 4; ++i) {
    at[order == ByteOrder::kBig ? 3 - i : i] = static_cast<std::byte>(value >> (8 * i));
  }
}

// Inflates a gzip stream that begins at `offset` of the file; `length` bytes come of it, or it is refused.
absl::StatusOr<std::vector<std::byte>> Inflate(const ProgramFile& file, std::uint64_t offset, std::uint64_t length) {
  // More than the plain bytes is never needed, but for a header of gzip's.
  constexpr std::uint64_t kSlack = 65536;
  std::vector<std::byte> packed(std::min(file.size - offset, length + kSlack));
  if (length / kMostInflation > packed.size()) return Reason("its compressed part is truncated");
  if (!file.read(offset, packed)) return Reason("its compressed part cannot be read");
  std::vector<std::byte> plain(length);
  z_stream stream{};
  // gzip's header and trailer belong to the stream.
  constexpr int kGzipWindow = 16 + MAX_WBITS;
  if (inflateInit2(&stream, kGzipWindow) != Z_OK) return Reason("there is no memory to inflate it");
  stream.next_in = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = reinterpret_cast<Bytef*>(plain.data());
  stream.avail_out = static_cast<uInt>(plain.size());
  inflate(&stream, Z_FINISH);
  const std::uint64_t made = stream.total_out;
  inflateEnd(&stream);
  if (made < length) {
    return Reason(absl::StrCat("its compressed part holds ", made, " of ", length, " bytes, or is no gzip stream"));
  }
  return plain;
}

class Parser {
 public:
  explicit Parser(const ProgramFile& file) : file_(file) {}

  absl::StatusOr<FlatProgram> Parse(std::uint64_t stack_size) {
    for (const auto step : {&Parser::ReadHeader, &Parser::ReadContents, &Parser::FindTextRelocations}) {
      if (absl::Status status = (this->*step)(); !status.ok()) return status;
    }
    if (stack_size > 0) program_.stack_length = std::min(stack_size, kSizeLimit);
    Map();
    if (absl::Status status = TryRelocations(); !status.ok()) return status;
    return std::move(program_);
  }

 private:
  absl::Status ReadHeader() {
    std::byte header[kHeaderSize];
    if (file_.size < kHeaderSize || !file_.read(0, header)) {
      return Reason(absl::StrCat("its bFLT header is truncated: ", file_.size, " of ", kHeaderSize, " bytes"));
    }
    const auto word = [&](Word at) -> std::uint64_t { return Load(header + 4 * at, ByteOrder::kBig); };
    program_.version = static_cast<std::uint32_t>(word(kRevision));
    if (program_.version != kVersion && program_.version != kOldVersion) {
      return Reason(absl::StrCat("its bFLT version ", program_.version, " is neither 2 nor 4"));
    }
    data_start_ = word(kDataStart), data_end_ = word(kDataEnd);
    reloc_start_ = word(kRelocStart), reloc_count_ = word(kRelocCount);
    const std::uint64_t bss_end = word(kBssEnd);
    if (data_start_ < kHeaderSize || data_end_ < data_start_ || bss_end < data_end_) {
      return Reason("its text, data and bss do not come one after the other behind the header");
    }
    program_.bss_length = bss_end - data_end_;
    program_.stack_length = word(kStackSize);
    for (const std::uint64_t size :
         {data_start_, data_end_ - data_start_ + 4 * reloc_count_, program_.bss_length, program_.stack_length}) {
      if (size >= kSizeLimit) return Reason("a part of it has 256 MiB or more, so its header is broken");
    }
    program_.entry = word(kEntry) & kEntryMask;
    if (program_.entry < kHeaderSize || program_.entry >= data_start_)
      return Reason("its entry point is not in its text");
    program_.flags = static_cast<std::uint32_t>(word(kFlags));
    // "All kinds of endian hacks" is what the kernel says of the old flags; any of them means this one.
    if (program_.version == kOldVersion && program_.flags != 0) program_.flags = kRam;
    constexpr std::uint32_t kKnown = kRam | kGotPic | kGzip | kGzipData | kTrace;
    if ((program_.flags & ~kKnown) != 0) {
      return Reason(absl::StrCat("it has flags that are not known: 0x", absl::Hex(program_.flags & ~kKnown)));
    }
    // The relocations are read along with the data and must lie in what is read.
    if (reloc_count_ > 0 && (reloc_start_ < data_start_ || reloc_start_ > data_end_)) {
      return Reason("its relocations do not lie behind its data");
    }
    return absl::OkStatus();
  }

  absl::Status ReadContents() {
    const std::uint64_t with_relocations = data_end_ - data_start_ + 4 * reloc_count_;
    std::vector<std::byte>&text = program_.text, &data = program_.data;
    if ((program_.flags & kGzip) != 0) {
      auto plain = Inflate(file_, kHeaderSize, data_start_ - kHeaderSize + with_relocations);
      if (!plain.ok()) return plain.status();
      const auto border = plain->begin() + static_cast<std::ptrdiff_t>(data_start_ - kHeaderSize);
      text.resize(kHeaderSize);
      if (!file_.read(0, text)) return Reason("its header cannot be read");
      text.insert(text.end(), plain->begin(), border);
      data.assign(border, plain->end());
    } else {
      const bool packed = (program_.flags & kGzipData) != 0;
      if (data_start_ > file_.size || (!packed && with_relocations > file_.size - data_start_)) {
        return Reason("its text, data and relocations reach past the end of the file: the file is truncated");
      }
      text.resize(data_start_);
      if (!file_.read(0, text)) return Reason("its text cannot be read");
      if (packed) {
        auto plain = Inflate(file_, data_start_, with_relocations);
        if (!plain.ok()) return plain.status();
        data = *std::move(plain);
      } else {
        data.resize(with_relocations);
        if (!file_.read(data_start_, data)) return Reason("its data cannot be read");
      }
    }
    for (std::uint64_t i = 0; i < reloc_count_; ++i) {
      program_.relocations.push_back(Load(data.data() + (reloc_start_ - data_start_) + 4 * i, ByteOrder::kBig));
    }
    data.resize(data_end_ - data_start_);
    return absl::OkStatus();
  }

  // Text that differs from process to process cannot be shared.
  absl::Status FindTextRelocations() {
    std::string& why = program_.text_is_copied_since;
    if ((program_.flags & kRam) != 0) {
      why = "its header asks for loading all of it into RAM";
    } else if ((program_.flags & kGzip) != 0) {
      why = "its text is compressed";
    } else if (program_.version == kVersion) {
      const std::uint64_t code = program_.text.size() - kHeaderSize;
      const bool patched = std::any_of(program_.relocations.begin(), program_.relocations.end(),
                                       [&](std::uint32_t at) { return at < code; });
      if (patched) why = "relocations change its text";
    }
    return absl::OkStatus();
  }

  void Map() {
    LoadMap& map = program_.map;
    map.format = "bFLT";
    constexpr int kAll = PROT_READ | PROT_WRITE | PROT_EXEC;
    const std::uint64_t text = program_.text.size(), data = program_.data.size();
    // The relocations lie where bss and stack will be until they are applied.
    const std::uint64_t extra = std::max(program_.bss_length + program_.stack_length, 4 * reloc_count_);
    const bool shared = program_.text_is_copied_since.empty();
    if (shared) {
      map.mappings.push_back({.memory = ProgramMemory::kShared,
                              .prot = PROT_READ | PROT_EXEC,
                              .length = PageUp(text),
                              .file_length = text});
    } else {
      map.notes.push_back(absl::StrCat("each process needs its own text: ", program_.text_is_copied_since));
    }
    const std::uint64_t before = shared ? 0 : text;
    // Without a word before it the data could begin where the text ends.
    const std::uint64_t data_at = (before + 4 + kDataAlignment - 1) / kDataAlignment * kDataAlignment;
    map.mappings.push_back({.memory = ProgramMemory::kCopied,
                            .prot = kAll,
                            .offset = shared ? PageDown(text) : 0,
                            .length = PageUp(data_at + data + extra),
                            .file_length = before + data});
    const std::size_t copy = map.mappings.size() - 1;
    const std::uint64_t image = shared ? PageUp(text) : 0;  // where the copy lies if it follows the text
    const std::uint64_t stack_at = map.mappings[copy].length - program_.stack_length;
    const auto piece = [&](const char* name, std::uint64_t at, std::uint64_t length) {
      if (length > 0) map.pieces.push_back({name, image + at, length, kAll, copy, at});
    };
    if (shared) {
      map.pieces.push_back({"text", 0, text, PROT_READ | PROT_EXEC, 0, 0});
    } else {
      piece("text", 0, text);
    }
    piece("data", data_at, data);
    piece("bss", data_at + data, program_.bss_length);
    piece("stack", stack_at, program_.stack_length);
  }

  // With addresses that are as good as any.
  absl::Status TryRelocations() const {
    constexpr std::uint32_t kSomewhere = 0x1000'0000, kElsewhere = 0x4000'0000;
    FlatProgram tried = program_;
    const absl::Status little = Relocate(tried, ByteOrder::kLittle, kSomewhere, kElsewhere);
    if (little.ok()) return little;
    tried = program_;
    if (Relocate(tried, ByteOrder::kBig, kSomewhere, kElsewhere).ok()) return absl::OkStatus();
    return little;
  }

  const ProgramFile& file_;
  FlatProgram program_;
  std::uint64_t data_start_ = 0, data_end_ = 0;      // in the file if nothing is compressed; bytes
  std::uint64_t reloc_start_ = 0, reloc_count_ = 0;  // bytes; records of four bytes
};

// The addresses of one loaded program. What the file calls addresses counts from behind the header.
class Relocator {
 public:
  Relocator(FlatProgram& program, ByteOrder order, std::uint32_t text_address, std::uint32_t data_address)
      : program_(program),
        order_(order),
        code_(program.text.size() - kHeaderSize),
        code_address_(text_address + static_cast<std::uint32_t>(kHeaderSize)),
        data_address_(data_address) {}

  absl::Status Got() {
    constexpr std::uint32_t kEnd = 0xffff'ffff;
    for (std::uint64_t at = 0;; at += 4) {
      if (at + 4 > program_.data.size()) return Reason("its GOT has no end: no word of -1 closes it");
      std::byte* const word = program_.data.data() + at;
      const std::uint32_t value = Load(word, order_);
      if (value == kEnd) return absl::OkStatus();
      if (value == 0) continue;
      if (absl::Status status = CheckTarget(value); !status.ok()) return status;
      Store(word, order_, AddressOf(value));
    }
  }

  absl::Status One(std::uint32_t record) {
    std::byte* const word = At(record);
    if (word == nullptr) {
      return Reason(absl::StrCat("a relocation at 0x", absl::Hex(record), " lies outside its text and data"));
    }
    // With a GOT the pointers stand in the target's order already.
    const std::uint32_t value = Load(word, (program_.flags & kGotPic) != 0 ? order_ : ByteOrder::kBig);
    // Not relocated: C++ tests pointers in its tables of constructors for zero.
    if (value == 0) return absl::OkStatus();
    if (absl::Status status = CheckTarget(value); !status.ok()) return status;
    Store(word, order_, AddressOf(value));
    return absl::OkStatus();
  }

  // Version 2: the two highest bits of a record say what is added to the word at the data's offset in the rest.
  absl::Status Old(std::uint32_t record) {
    enum Type : std::uint32_t { kText, kData, kBss };
    const std::uint32_t offset = record & 0x3fff'ffff;
    if (std::uint64_t{offset} + 4 > program_.data.size()) {
      return Reason(absl::StrCat("a relocation at 0x", absl::Hex(offset), " lies outside its data"));
    }
    std::byte* const word = program_.data.data() + offset;
    std::uint32_t value = Load(word, order_);
    switch (record >> 30) {
      case kText:
        value += code_address_;
        break;
      case kData:
        value += data_address_;
        break;
      case kBss:
        value += data_address_ + static_cast<std::uint32_t>(program_.data.size());
        break;
      default:
        return Reason(absl::StrCat("a relocation at 0x", absl::Hex(offset), " is of no known type"));
    }
    Store(word, order_, value);
    return absl::OkStatus();
  }

 private:
  // Four bytes of text or data, null if they are not there.
  std::byte* At(std::uint64_t address) {
    if (address + 4 <= code_) return program_.text.data() + kHeaderSize + address;
    if (address < code_ || address - code_ + 4 > program_.data.size()) return nullptr;
    return program_.data.data() + (address - code_);
  }

  absl::Status CheckTarget(std::uint64_t address) const {
    if (address <= code_ + program_.data.size() + program_.bss_length) return absl::OkStatus();
    return Reason(absl::StrCat("a pointer to 0x", absl::Hex(address),
                               " leads out of the program (shared libraries of the format are not supported)"));
  }

  std::uint32_t AddressOf(std::uint32_t value) const {
    return value < code_ ? code_address_ + value : data_address_ + (value - static_cast<std::uint32_t>(code_));
  }

  FlatProgram& program_;
  const ByteOrder order_;
  const std::uint64_t code_;  // bytes of text behind the header
  const std::uint32_t code_address_, data_address_;
};

}  // namespace

bool IsFlat(const ProgramFile& file) {
  std::byte magic[sizeof(kMagic)];
  return file.size >= sizeof(magic) && file.read(0, magic) && std::memcmp(magic, kMagic, sizeof(magic)) == 0;
}

absl::StatusOr<FlatProgram> ParseFlat(const ProgramFile& file, std::uint64_t stack_size) {
  if (!IsFlat(file)) return Reason("it is no bFLT file");
  return Parser(file).Parse(stack_size);
}

absl::Status Relocate(FlatProgram& program, ByteOrder order, std::uint32_t text_address, std::uint32_t data_address) {
  Relocator relocator(program, order, text_address, data_address);
  if ((program.flags & kGotPic) != 0) {
    if (absl::Status status = relocator.Got(); !status.ok()) return status;
  }
  for (const std::uint32_t record : program.relocations) {
    absl::Status status = program.version == kOldVersion ? relocator.Old(record) : relocator.One(record);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace mapbroker::loader
