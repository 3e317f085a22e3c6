// What tests/ptx/file.py calls by ctypes: a file of PTX, its kernels, and launches of them. A call that can fail
// returns whether it has; what it has to say, its answer in lines or its error, ptx_answer() returns next.
#include <cstring>
#include <sstream>

#include "clock.h"
#include "table.h"
#include "traffic.h"

struct File {
  ptx::Module module;
  std::map<std::string, std::unique_ptr<ptx::Program>> programs;

  ptx::Program& program(const std::string& kernel) {
    std::unique_ptr<ptx::Program>& found = programs[kernel];
    if (!found) {
      for (const ptx::Entry& entry : module.entries)
        if (entry.name == kernel) found = ptx::decode(module, entry);
      if (!found) throw std::runtime_error("no kernel named " + kernel);
    }
    return *found;
  }
};

struct Buffer {
  const char* name;
  uint64_t address, bytes, element_bytes;
};

struct Request {
  const char* kernel;
  const unsigned char* params;
  uint32_t grid[3], block[3];
  uint32_t dynamic_bytes, order, seed, of_triton;
  const Buffer* buffers;  // none: accesses are not checked
  uint64_t buffer_count, limit;
  uint64_t executed;                // the answer: instructions that warps executed
  ptx::Traffic* traffic;            // and if it is wanted, what they moved
  uint64_t sample;                  // run so many blocks only; 0: all
  const ptx::Latencies* latencies;  // and if they are given, by these:
  uint64_t cycles, blocks;          // of the longest block; how many have run
};

namespace {

thread_local std::string answer;

template <class F>
int said(F f) {
  try {
    std::ostringstream lines;
    f(lines);
    answer = lines.str();
    return 0;
  } catch (const std::exception& error) {
    answer = error.what();
    return 1;
  }
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* ptx_answer() {
  return answer.c_str();
}
EXPORTED int ptx_open(const char* text, File** file) {
  return said([&](std::ostream&) { *file = new File{ptx::parse(text), {}}; });
}
EXPORTED void ptx_close(File* file) {
  delete file;
}
// The kernels' names.
EXPORTED int ptx_kernels(File* file) {
  return said([&](std::ostream& lines) {
    for (const ptx::Entry& entry : file->module.entries) lines << entry.name << '\n';
  });
}
// Offset and bytes of each parameter.
EXPORTED int ptx_params(File* file, const char* kernel) {
  return said([&](std::ostream& lines) {
    for (const ptx::Variable& v : file->program(kernel).params) lines << v.offset << '\t' << v.bytes << '\n';
  });
}
// Of each instruction: opcode, line of the PTX, source, times executed by a warp.
EXPORTED int ptx_instructions(File* file, const char* kernel) {
  return said([&](std::ostream& lines) {
    const ptx::Program& program = file->program(kernel);
    for (size_t i = 0; i < program.code.size(); ++i)
      lines << program.text[i].opcode << '\t' << program.text[i].line << '\t'
            << program.source(program.code[i]) << '\t' << program.code[i].executed << '\n';
  });
}
EXPORTED int ptx_run(File* file, Request* request) {
  return said([&](std::ostream&) {
    ptx::Launch launch;
    launch.program = &file->program(request->kernel);
    launch.params = request->params;
    launch.grid = {request->grid[0], request->grid[1], request->grid[2]};
    launch.block = {request->block[0], request->block[1], request->block[2]};
    launch.dynamic_bytes = request->dynamic_bytes;
    launch.order = static_cast<ptx::Order>(request->order), launch.seed = request->seed;
    launch.limit = request->limit;
    launch.of_triton = request->of_triton;
    launch.traffic = request->traffic;
    launch.sample = request->sample, launch.latencies = request->latencies;
    launch.memory.checked = request->buffer_count > 0;
    for (uint64_t k = 0; k < request->buffer_count; ++k) {
      const Buffer& b = request->buffers[k];
      launch.memory.add(b.name, b.address, b.bytes, static_cast<uint32_t>(b.element_bytes));
    }
    ptx::run(launch);
    request->executed = launch.executed;
    request->cycles = launch.cycles, request->blocks = launch.blocks;
  });
}
// All instructions that the interpreter knows.
EXPORTED int ptx_known() {
  return said([](std::ostream& lines) {
    for (const auto& [name, handler] : ptx::table()) lines << name << '\n';
  });
}
