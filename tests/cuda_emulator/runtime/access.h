// Check mode: kernels compiled with -fsanitize=thread call the __tsan_* hooks on every load and store (and
// are not linked with the sanitizer). The hooks hold each access against the buffers of the launch and report
// accesses out of bounds, reads of shared memory that nobody wrote, and races: two accesses, one of them a
// write, by different threads with no barrier between them. A full-mask __syncwarp orders the lanes of a
// warp; shuffles do not. Not modelled: ordering by fences and flags.
#pragma once
#include <dlfcn.h>
#include <link.h>

#include <cstdio>

#include "machine.h"

namespace emu {

enum class Access { read, write, atomic };

struct Accessors {  // lanes of one warp that accessed a cell in one epoch
  uint64_t block = ~0ull;
  unsigned epoch = 0, warp = 0, warp_epoch = 0, lanes = 0;

  bool current() const { return lanes && block == machine.block && epoch == machine.epoch; }
  bool of_running_warp() const {
    return current() && warp == machine.current / 32 && warp_epoch == machine.warp().epoch;
  }
  // May the running thread's access come before or after this one?
  bool unordered(bool shared) const {
    if (!lanes) return false;
    if (block != machine.block) return !shared;
    if (epoch != machine.epoch) return false;
    if (warp != machine.current / 32) return true;
    return warp_epoch == machine.warp().epoch && (lanes & ~(1u << machine.lane()));
  }
  void add() {
    if (!of_running_warp())
      *this = {machine.block, machine.epoch, machine.current / 32, machine.warp().epoch, 0};
    lanes |= 1u << machine.lane();
  }
  std::string describe() const {
    const unsigned others =
        block == machine.block && warp == machine.current / 32 ? lanes & ~(1u << machine.lane()) : lanes;
    const unsigned x = blockDim.x, y = blockDim.y, t = 32 * warp + __builtin_ctz(others);
    const uint64_t gx = gridDim.x, gy = gridDim.y;
    return "block " +
           text(uint3{unsigned(block % gx), unsigned(block / gx % gy), unsigned(block / gx / gy)}) +
           " thread " + text(uint3{t % x, t / x % y, t / x / y});
  }
};
struct Cell {
  Accessors writer, atomic, readers[2];  // readers: the last two warps
  uint64_t written_in_block = ~0ull;
};
struct Region {
  uintptr_t begin;
  size_t bytes, cell_bytes;
  std::string name;
  bool shared;
  std::vector<Cell> cells;

  uintptr_t end() const { return begin + bytes; }
};
inline std::vector<Region> regions;

inline void add_region(const std::string& name, const void* p, size_t bytes, size_t cell_bytes, bool shared) {
  regions.push_back({reinterpret_cast<uintptr_t>(p), bytes, cell_bytes, name, shared,
                     std::vector<Cell>((bytes + cell_bytes - 1) / cell_bytes)});
}

inline std::string source_line(void* pc) {
  Dl_info info;
  if (!dladdr(pc, &info)) return "?";
  char command[1024];
  const size_t offset = static_cast<char*>(pc) - 1 - static_cast<char*>(info.dli_fbase);
  snprintf(command, sizeof command, "addr2line -e '%s' %#zx 2>/dev/null", info.dli_fname, offset);
  std::string line;
  if (FILE* pipe = popen(command, "r")) {
    for (int c; (c = fgetc(pipe)) != EOF && c != '\n' && c != ' ';) line += static_cast<char>(c);
    pclose(pipe);
  }
  const size_t slash = line.rfind('/');
  return line.empty() ? "?" : slash == std::string::npos ? line : line.substr(slash + 1);
}

// Constants and built-in variables live in the data of the library itself.
inline bool in_this_library(uintptr_t address) {
  static uintptr_t begin = 0, end = 0;
  if (!end)
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void*) {
          uintptr_t low = UINTPTR_MAX, high = 0;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& segment = info->dlpi_phdr[i];
            if (segment.p_type != PT_LOAD) continue;
            const uintptr_t start = info->dlpi_addr + segment.p_vaddr;
            low = start < low ? start : low;
            high = start + segment.p_memsz > high ? start + segment.p_memsz : high;
          }
          const uintptr_t own = reinterpret_cast<uintptr_t>(&machine);
          if (own >= low && own < high) begin = low, end = high;
          return 0;
        },
        nullptr);
  return address >= begin && address < end;
}

inline const char* verb(Access access) {
  return access == Access::read ? "read" : access == Access::write ? "write" : "atomic update";
}

[[noreturn]] inline void fail_out_of_bounds(uintptr_t a, size_t bytes, Access access, void* pc) {
  std::string nearest;
  size_t best = 4096;
  for (const Region& r : regions) {
    const bool before = a < r.begin;
    const size_t distance = before ? r.begin - a : a + bytes - r.end();
    if (distance <= best) {
      best = distance;
      nearest =
          ", " + std::to_string(distance) + (before ? " bytes before " : " bytes past the end of ") + r.name;
    }
  }
  fail("out-of-bounds " + std::string(verb(access)) + " of " + std::to_string(bytes) + " bytes" + nearest +
       " at " + source_line(pc));
}

inline void check_cell(Region& r, size_t index, Access access, void* pc) {
  Cell& cell = r.cells[index];
  const Accessors* other = nullptr;
  const char* kind = "";
  const auto conflicts = [&](const Accessors& a, const char* what) {
    if (!other && a.unordered(r.shared)) other = &a, kind = what;
  };
  conflicts(cell.writer, "write");
  if (access != Access::atomic) conflicts(cell.atomic, "atomic update");
  if (access != Access::read)
    for (const Accessors& reader : cell.readers) conflicts(reader, "read");
  const auto place = [&] { return r.name + "+" + std::to_string(index * r.cell_bytes); };
  if (other)
    fail("race on " + place() + ": " + verb(access) + " at " + source_line(pc) + " and " + kind + " by " +
         other->describe() + " with no barrier between");
  if (r.shared && access != Access::write && cell.written_in_block != machine.block)
    fail("read of unwritten shared memory " + place() + " at " + source_line(pc));
  if (access == Access::write) cell.writer.add();
  if (access == Access::atomic) cell.atomic.add();
  if (access == Access::read) {
    if (!cell.readers[0].of_running_warp()) std::swap(cell.readers[0], cell.readers[1]);
    cell.readers[0].add();
  } else {
    cell.written_in_block = machine.block;
  }
}

inline void check_access(const void* p, size_t bytes, Access access, void* pc) {
  if (!machine.in_thread || regions.empty()) return;
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  if (machine.thread().fiber.on_stack(a)) return;
  if (a - reinterpret_cast<uintptr_t>(machine.params) < machine.kernel->params_bytes) return;
  for (Region& r : regions) {
    if (a < r.begin || a >= r.end()) continue;
    if (a + bytes > r.end()) fail_out_of_bounds(a, bytes, access, pc);
    for (size_t i = (a - r.begin) / r.cell_bytes; i <= (a - r.begin + bytes - 1) / r.cell_bytes; ++i)
      check_cell(r, i, access, pc);
    return;
  }
  if (!in_this_library(a)) fail_out_of_bounds(a, bytes, access, pc);
}
void atomic_access(const void* p, size_t bytes) {
  check_access(p, bytes, Access::atomic, __builtin_return_address(0));
}

}  // namespace emu

#define EMU_HOOK(name, bytes, access)                                              \
  extern "C" void __tsan_##name(void* p) {                                         \
    emu::check_access(p, bytes, emu::Access::access, __builtin_return_address(0)); \
  }
#define EMU_HOOKS(bytes)                       \
  EMU_HOOK(read##bytes, bytes, read)           \
  EMU_HOOK(write##bytes, bytes, write)         \
  EMU_HOOK(unaligned_read##bytes, bytes, read) \
  EMU_HOOK(unaligned_write##bytes, bytes, write)
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)
extern "C" void __tsan_read_range(void* p, size_t bytes) {
  emu::check_access(p, bytes, emu::Access::read, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* p, size_t bytes) {
  emu::check_access(p, bytes, emu::Access::write, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
// The guard of a function-local static.
extern "C" unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) {
  return *p;
}
