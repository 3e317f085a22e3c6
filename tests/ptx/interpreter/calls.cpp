// Puts functions in the place of their calls; what passes between them, .param variables, become registers.
#include <stdexcept>
#include <tuple>

#include "text.h"

namespace ptx {
namespace {

class Inliner {
 public:
  Inliner(const Module& module, const Entry& entry) : module_(module), whole_(entry) {
    whole_.statements.clear();
    whole_.labels.clear();
    whole_.widths.clear();
  }
  Entry whole(const Entry& entry) {
    copy(entry, "", {}, "");
    return std::move(whole_);
  }

 private:
  using Names = std::map<std::string, std::string>;  // of a function's variables, those of the call

  // Appends a body; `call` tells its labels and variables from those of other calls, and it ends in `end`.
  void copy(const Entry& body, const std::string& call, const Names& names, const std::string& end) {
    const int first = static_cast<int>(whole_.widths.size());
    whole_.widths.insert(whole_.widths.end(), body.widths.begin(), body.widths.end());
    std::multimap<uint32_t, std::string> labels;
    for (const auto& [label, at] : body.labels) labels.emplace(at, label);
    for (uint32_t i = 0; i <= body.statements.size(); ++i) {
      for (auto [at, last] = labels.equal_range(i); at != last; ++at)
        whole_.labels[at->second + call] = whole_.statements.size();
      if (i == body.statements.size()) break;
      Statement s = body.statements[i];
      if (s.guard >= 0) s.guard += first;
      for (Value& value : s.operands) shift(value, first);
      if (s.opcode == "call.uni") {
        enter(s, call);
        continue;
      }
      if (!s.label.empty()) s.label += call;
      if (s.opcode == "ret" && !end.empty()) s.opcode = "bra", s.label = end;
      if (s.opcode.compare(0, 9, "st.param.") == 0) pass(s, 0, call, names);
      if (s.opcode.compare(0, 9, "ld.param.") == 0 && !of_kernel(s.operands.at(1))) pass(s, 1, call, names);
      whole_.statements.push_back(std::move(s));
    }
  }
  static void shift(Value& value, int first) {
    if (value.kind == Value::reg) value.index += first;
    for (Value& element : value.elements) shift(element, first);
  }
  bool of_kernel(const Value& address) const {
    if (address.kind != Value::address || address.elements[0].kind != Value::symbol) return true;
    for (const Variable& v : whole_.params)
      if (v.name == address.elements[0].name) return true;
    return false;
  }

  void enter(const Statement& call, const std::string& caller) {
    const auto found = module_.functions.find(call.label);
    if (found == module_.functions.end() || call.guard >= 0)
      throw std::runtime_error(whole_.name + ": PTX line " + std::to_string(call.line) +
                               ": the interpreter cannot call " + call.label);
    const Entry& function = found->second;
    const std::string here = "@" + std::to_string(++calls_);
    Names names;
    for (size_t k = 0; k < function.params.size(); ++k)
      names[function.params[k].name] = call.arguments.at(k) + caller;
    for (size_t k = 0; k < function.results.size(); ++k)
      names[function.results[k].name] = call.results.at(k) + caller;
    copy(function, here, names, "end" + here);
    whole_.labels["end" + here] = whole_.statements.size();
  }

  // ld.param.f32 %f1, [param+4] or st.param.f32 [param+4], %f1: a mov from or to the register of those bytes.
  void pass(Statement& s, size_t address, const std::string& call, const Names& names) {
    const Value& at = s.operands[address];
    const std::string name = at.elements[0].name, type = s.opcode.substr(9);
    const auto renamed = names.find(name);
    const int width = std::stoi(type.substr(type.find_first_of("0123456789")));
    const auto key =
        std::make_tuple(renamed == names.end() ? name + call : renamed->second, at.displacement, width);
    const auto [found, is_new] = registers_.emplace(key, static_cast<int>(whole_.widths.size()));
    if (is_new) whole_.widths.push_back(width);
    Value value;
    value.kind = Value::reg;
    value.index = found->second;
    s.operands[address] = value;
    s.opcode = "mov." + type;
  }

  const Module& module_;
  Entry whole_;
  std::map<std::tuple<std::string, int64_t, int>, int> registers_;
  int calls_ = 0;
};

}  // namespace

Entry without_calls(const Module& module, const Entry& entry) {
  return Inliner(module, entry).whole(entry);
}

}  // namespace ptx
