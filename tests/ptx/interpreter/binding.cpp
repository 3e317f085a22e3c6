// The Python side: a file of PTX, its kernels, and launches of them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "table.h"

namespace py = pybind11;

namespace {

using Buffer = std::tuple<std::string, uintptr_t, size_t, size_t>;  // name, address, bytes, element bytes

class File {
 public:
  explicit File(const std::string& text) : module_(ptx::parse(text)) {}

  std::vector<std::string> kernels() const {
    std::vector<std::string> names;
    for (const ptx::Entry& entry : module_.entries) names.push_back(entry.name);
    return names;
  }
  ptx::Program& program(const std::string& kernel) {
    std::unique_ptr<ptx::Program>& found = programs_[kernel];
    if (!found) {
      for (const ptx::Entry& entry : module_.entries)
        if (entry.name == kernel) found = ptx::decode(module_, entry);
      if (!found) throw py::key_error("no kernel named " + kernel);
    }
    return *found;
  }
  // Instructions that warps executed.
  uint64_t run(const std::string& kernel, uintptr_t params, ptx::Size grid, ptx::Size block,
               uint32_t dynamic_bytes, const std::string& order, unsigned seed,
               const std::vector<Buffer>& buffers, uint64_t limit, bool lockstep) {
    static const std::map<std::string, ptx::Order> orders = {{"forward", ptx::Order::forward},
                                                             {"reverse", ptx::Order::reverse},
                                                             {"random", ptx::Order::random},
                                                             {"skewed", ptx::Order::skewed}};
    ptx::Launch launch;
    launch.program = &program(kernel);
    launch.params = reinterpret_cast<const unsigned char*>(params);
    launch.grid = grid, launch.block = block;
    launch.dynamic_bytes = dynamic_bytes;
    launch.order = orders.at(order), launch.seed = seed, launch.limit = limit;
    launch.lockstep = lockstep;
    launch.memory.checked = !buffers.empty();
    for (const auto& [name, address, bytes, element] : buffers)
      launch.memory.add(name, address, bytes, element);
    const py::gil_scoped_release release;
    ptx::run(launch);
    return launch.executed;
  }

 private:
  ptx::Module module_;
  std::map<std::string, std::unique_ptr<ptx::Program>> programs_;
};

ptx::Size size(const std::tuple<uint32_t, uint32_t, uint32_t>& t) {
  return {std::get<0>(t), std::get<1>(t), std::get<2>(t)};
}
using Tuple = std::tuple<uint32_t, uint32_t, uint32_t>;

}  // namespace

PYBIND11_MODULE(_ptx, m) {
  py::class_<File>(m, "File")
      .def(py::init<const std::string&>())
      .def_property_readonly("kernels", &File::kernels)
      .def("params",
           [](File& file, const std::string& kernel) {
             std::vector<std::pair<uint32_t, uint32_t>> found;  // offset, bytes
             for (const ptx::Variable& v : file.program(kernel).params) found.emplace_back(v.offset, v.bytes);
             return found;
           })
      .def("instructions",
           [](File& file, const std::string& kernel) {  // opcode, PTX line, source, times executed by a warp
             std::vector<std::tuple<std::string, int, std::string, uint64_t>> found;
             const ptx::Program& program = file.program(kernel);
             for (size_t i = 0; i < program.code.size(); ++i)
               found.emplace_back(program.text[i].opcode, program.text[i].line,
                                  program.source(program.code[i]), program.code[i].executed);
             return found;
           })
      .def(
          "run",
          [](File& file, const std::string& kernel, uintptr_t params, Tuple grid, Tuple block,
             uint32_t shared, const std::string& order, unsigned seed, const std::vector<Buffer>& buffers,
             uint64_t limit, bool lockstep) {
            return file.run(kernel, params, size(grid), size(block), shared, order, seed, buffers, limit,
                            lockstep);
          },
          py::arg("kernel"), py::arg("params"), py::arg("grid"), py::arg("block"), py::arg("shared") = 0,
          py::arg("order") = "forward", py::arg("seed") = 0, py::arg("buffers") = std::vector<Buffer>{},
          py::arg("limit") = 0, py::arg("lockstep") = false);
  m.def("known", [] {
    std::map<std::string, std::string> names;
    for (const auto& [name, handler] : ptx::table()) names[name] = handler.operands;
    return names;
  });
}
