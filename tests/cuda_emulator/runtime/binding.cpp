// The Python side of the emulator: one generic module, linked with one compiled kernel file at a time.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "launch.h"
#include "tensor_cores.h"

namespace py = pybind11;

namespace {

const emu::Kernel& find(const std::string& name) {
  const auto found = emu::kernels().find(name);
  if (found == emu::kernels().end()) throw py::key_error("no kernel named " + name);
  return found->second;
}

const std::map<std::string, emu::Order> orders = {{"forward", emu::Order::forward},
                                                  {"reverse", emu::Order::reverse},
                                                  {"random", emu::Order::random},
                                                  {"skewed", emu::Order::skewed}};

using Buffer = std::tuple<std::string, uintptr_t, size_t, size_t>;  // name, address, bytes, element bytes

}  // namespace

PYBIND11_MODULE(_cuda_emulator, m) {
  m.def("kernels", [] {
    std::map<std::string, std::pair<std::string, size_t>> names;
    for (const auto& [name, kernel] : emu::kernels()) names[name] = {kernel.params_type, kernel.params_bytes};
    return names;
  });
  m.def("launch_rule", [](const std::string& kernel, const py::bytes& params) {
    const std::string_view bytes = params;
    const emu::Launch rule = find(kernel).launch(bytes.data());
    return std::make_tuple(std::make_tuple(rule.grid.x, rule.grid.y, rule.grid.z),
                           std::make_tuple(rule.block.x, rule.block.y, rule.block.z), rule.shared_bytes);
  });
  m.def("run", [](const std::string& kernel, const py::bytes& params, const std::string& order, unsigned seed,
                  const std::vector<Buffer>& checked) {
    const std::string_view bytes = params;
    const emu::Kernel& found = find(kernel);
    if (bytes.size() != found.params_bytes) throw py::value_error(kernel + ": params have the wrong size");
    for (const auto& [name, address, size, element] : checked)
      emu::add_region(name, reinterpret_cast<const void*>(address), size, element, false);
    emu::launch(found, bytes.data(), orders.at(order), seed);
  });
}
