#include "tests/emulator/symbols.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <map>
#include <memory>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

#include <fmt/format.h>

// Where the no-ops of __launch_bounds__ start, one entry a kernel; the linker makes these names.
extern "C" const char* __start___patchable_function_entries[] __attribute__((weak));
extern "C" const char* __stop___patchable_function_entries[] __attribute__((weak));

namespace emu {
namespace {

struct Function {
  uintptr_t address;
  std::string mangled;
};

struct Image {
  uintptr_t base = 0, begin = 0, end = 0;
  size_t thread_local_bytes = 0;
  std::vector<Function> functions;
  std::vector<ThreadLocalObject> thread_locals;
};

/// The first object of the list is the executable.
int read_program_headers(dl_phdr_info* info, size_t, void* result) {
  auto& image = *static_cast<Image*>(result);
  image.base = info->dlpi_addr;
  image.begin = UINTPTR_MAX;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    const uintptr_t begin = image.base + segment.p_vaddr;
    if (segment.p_type == PT_LOAD) {
      image.begin = std::min<uintptr_t>(image.begin, begin);
      image.end = std::max<uintptr_t>(image.end, begin + segment.p_memsz);
    } else if (segment.p_type == PT_TLS) {
      image.thread_local_bytes = segment.p_memsz;
    }
  }
  return 1;
}

/// All functions and thread-local objects, static ones too, which the dynamic linker cannot name.
void read_symbol_table(Image& image) {
  const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (file < 0 || fstat(file, &status) != 0) return;
  const auto bytes = static_cast<size_t>(status.st_size);
  const char* const elf = static_cast<char*>(mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0));
  close(file);
  const auto* const header = reinterpret_cast<const ElfW(Ehdr)*>(elf);
  const auto* const sections = reinterpret_cast<const ElfW(Shdr)*>(elf + header->e_shoff);
  for (int s = 0; s < header->e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB) continue;
    const auto* const symbols = reinterpret_cast<const ElfW(Sym)*>(elf + sections[s].sh_offset);
    const char* const names = elf + sections[sections[s].sh_link].sh_offset;
    for (size_t i = 0; i < sections[s].sh_size / sizeof(ElfW(Sym)); ++i) {
      const ElfW(Sym)& symbol = symbols[i];
      const int type = ELF64_ST_TYPE(symbol.st_info);
      if (symbol.st_shndx == SHN_UNDEF) continue;
      if (type == STT_FUNC) {
        image.functions.push_back({image.base + symbol.st_value, names + symbol.st_name});
      } else if (type == STT_TLS) {
        image.thread_locals.push_back({symbol.st_value, symbol.st_size, names + symbol.st_name});
      }
    }
  }
  munmap(const_cast<char*>(elf), bytes);
  std::ranges::sort(image.functions, {}, &Function::address);
  std::ranges::sort(image.thread_locals, {}, &ThreadLocalObject::offset);
}

const Image& image() {
  static const Image& self = *[] {
    auto* const read = new Image;
    dl_iterate_phdr(read_program_headers, read);
    read_symbol_table(*read);
    return read;
  }();
  return self;
}

std::string demangle(const std::string& mangled) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> name(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), std::free);
  return name ? name.get() : mangled;
}

void erase_all(std::string& text, std::string_view what) {
  for (size_t at; (at = text.find(what)) != std::string::npos;) text.erase(at, what.size());
}

int find_thread_local_block(dl_phdr_info* info, size_t, void* result) {
  *static_cast<void**>(result) = info->dlpi_tls_data;
  return 1;
}

/// Lines of `addr2line -i`, innermost first, without folders.
std::vector<std::string> lines_at(uint32_t offset) {
  const std::string command = fmt::format("addr2line -i -e /proc/{}/exe {:#x} 2>/dev/null",
                                          getpid(), image().begin - image().base + offset);
  std::vector<std::string> lines;
  FILE* const pipe = popen(command.c_str(), "r");
  if (!pipe) return lines;
  std::array<char, 1024> buffer{};
  while (fgets(buffer.data(), buffer.size(), pipe)) {
    std::string line = buffer.data();
    line.resize(std::min(line.find_first_of(" \n"), line.size()));
    lines.push_back(line.substr(line.rfind('/') + 1));
  }
  pclose(pipe);
  // The emulator's own headers say nothing about where the program stands.
  const auto is_own = [](const std::string& line) {
    return line.starts_with("ptx.h:") || line.starts_with("kernel_code.h:") ||
           line.starts_with("cuda_bf16.h:");
  };
  if (!std::ranges::all_of(lines, is_own)) std::erase_if(lines, is_own);
  return lines;
}

}  // namespace

std::string array_name(const ThreadLocalObject& object) {
  const std::string name = demangle(object.symbol);
  const size_t last = name.rfind("::");
  return last == std::string::npos ? name : name.substr(last + 2);
}

std::string kernel_name(const void* kernel) {
  const auto& functions = image().functions;
  const auto found = std::ranges::lower_bound(functions, reinterpret_cast<uintptr_t>(kernel), {},
                                              &Function::address);
  if (found == functions.end() || found->address != reinterpret_cast<uintptr_t>(kernel)) {
    return fmt::format("kernel at {}", kernel);
  }
  std::string name = demangle(found->mangled);
  erase_all(name, "(anonymous namespace)::");
  // The parameters are the last parenthesis; template arguments may contain others.
  if (name.ends_with(')')) {
    int depth = 0;
    size_t at = name.size();
    do {
      --at;
      depth += name[at] == ')' ? 1 : name[at] == '(' ? -1 : 0;
    } while (at > 0 && depth > 0);
    name.resize(at);
  }
  if (name.starts_with("void ")) name.erase(0, 5);
  return name;
}

unsigned launch_bound(const void* kernel) {
  const char* const entry = static_cast<const char*>(kernel);
#if defined(__x86_64__)
  constexpr ptrdiff_t no_op_bytes = 1;
#else
  constexpr ptrdiff_t no_op_bytes = 4;
#endif
  // The nearest start before the kernel is its own if no other function lies between.
  const char* nearest = nullptr;
  for (auto p = __start___patchable_function_entries; p < __stop___patchable_function_entries;
       ++p) {
    if (*p < entry && entry - *p <= 1024 * no_op_bytes) nearest = std::max(nearest, *p);
  }
  if (!nearest) return 0;
  const auto& functions = image().functions;
  const auto next = std::ranges::lower_bound(functions, reinterpret_cast<uintptr_t>(nearest), {},
                                             &Function::address);
  if (next == functions.end() || next->address != reinterpret_cast<uintptr_t>(kernel)) return 0;
  return static_cast<unsigned>((entry - nearest) / no_op_bytes);
}

size_t static_shared_bytes(const void* kernel) {
  const auto& functions = image().functions;
  const auto found = std::ranges::lower_bound(functions, reinterpret_cast<uintptr_t>(kernel), {},
                                              &Function::address);
  if (found == functions.end() || !found->mangled.starts_with("_Z")) return 0;
  // A function's local x is mangled _ZZ, the function, E, x.
  const std::string prefix = "_ZZ" + found->mangled.substr(2) + "E";
  size_t bytes = 0;
  for (const ThreadLocalObject& object : image().thread_locals) {
    if (object.symbol.starts_with(prefix)) bytes += object.bytes;
  }
  return bytes;
}

const ThreadLocalObject* thread_local_at(size_t offset) {
  const auto& objects = image().thread_locals;
  auto after = std::ranges::upper_bound(objects, offset, {}, &ThreadLocalObject::offset);
  if (after == objects.begin()) return nullptr;
  const ThreadLocalObject& object = *std::prev(after);
  return offset < object.offset + object.bytes ? &object : nullptr;
}

char* thread_local_block() {
  void* block = nullptr;
  dl_iterate_phdr(find_thread_local_block, &block);
  return static_cast<char*>(block);
}

size_t thread_local_bytes() {
  return image().thread_local_bytes;
}

bool is_in_image(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  return at >= image().begin && at < image().end;
}

uint32_t code_offset(const void* pc) {
  // A return address is one past the call that it belongs to.
  return pc ? static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pc) - 1 - image().begin) : 0;
}

std::string source_line(uint32_t offset) {
  static auto& known = *new std::map<uint32_t, std::string>;
  const auto [entry, is_new] = known.try_emplace(offset);
  if (!is_new) return entry->second;
  const std::vector<std::string> lines = lines_at(offset);
  entry->second = lines.empty()       ? "an unknown line"
                  : lines.size() == 1 ? lines[0]
                                      : lines.front() + ", inlined in " + lines.back();
  return entry->second;
}

}  // namespace emu
