#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "clock.h"
#include "table.h"

namespace ptx {

const Table& table() {
  static const Table all = [] {
    Table made;
    add_integers(made);
    add_floats(made);
    add_logic(made);
    add_conversions(made);
    add_memory(made);
    add_copies(made);
    add_control(made);
    add_collectives(made);
    add_tensor_cores(made);
    add_warp_groups(made);
    return made;
  }();
  return all;
}

std::string Program::source(const Instruction& i) const {
  const Statement& statement = text[&i - code.data()];
  const auto name = [&](int file, int line) {
    const std::string& path = files.at(file);
    return path.substr(path.rfind('/') + 1) + ":" + std::to_string(line);
  };
  const Place& place = statement.place;
  if (!files.count(place.file)) return "PTX line " + std::to_string(statement.line);
  const std::string here = name(place.file, place.line);
  return place.caller_file ? name(place.caller_file, place.caller_line) + " (" + here + ")" : here;
}

namespace {

uint32_t slot_bytes(int width) {  // of a register: a mask, or 32 values
  return width == 1 ? 8 : 4 * width;
}
int width_of(char letter) {
  return letter == 'p' ? 1 : letter == 'h' ? 16 : letter == 'w' ? 32 : 64;
}

class Decoder {
 public:
  Decoder(const Module& module, const Entry& entry)
      : module_(module), entry_(entry), program_(std::make_unique<Program>()) {
    program_->name = entry.name;
    program_->files = module.files;
    program_->text = entry.statements;
    program_->params = entry.params;
    program_->params_bytes = entry.params_bytes;
    place_shared();
    places_ = places_of_registers(entry, program_->registers_bytes);
    for (int width : {1, 16, 32, 64}) sinks_[width] = more_registers(slot_bytes(width));
  }

  std::unique_ptr<Program> program() {
    program_->code.resize(entry_.statements.size());
    std::vector<size_t> first;
    for (size_t i = 0; i < entry_.statements.size(); ++i) {
      statement_ = &entry_.statements[i];
      first.push_back(program_->operands.size());
      const std::string& name = statement_->opcode;
      if (name.find(".shared") < 5 && name.compare(name.size() - 2, 2, "16") == 0) program_->shared_cell = 2;
      instruction(program_->code[i]);
    }
    const std::vector<uint32_t> meet = meeting_points(entry_);
    for (size_t i = 0; i < entry_.statements.size(); ++i) {
      Instruction& made = program_->code[i];
      made.operands = program_->operands.data() + first[i];
      made.meet = meet[i];
      if (const std::string& label = entry_.statements[i].label; !label.empty())
        made.target = entry_.labels.at(label);
    }
    return std::move(program_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw std::runtime_error(entry_.name + ": PTX line " + std::to_string(statement_->line) + ": " + what);
  }

  void place_shared() {
    uint32_t end = shared_begin;
    program_->shared = entry_.shared;
    program_->shared.insert(program_->shared.end(), module_.dynamic_shared.begin(),
                            module_.dynamic_shared.end());
    for (Variable& v : program_->shared) {
      const uint32_t align = std::max(v.align, v.bytes == 0 ? 1024u : 128u);
      v.offset = (end + shared_gap + align - 1) / align * align;
      if (&v == &program_->shared.front()) v.offset = shared_begin;
      end = v.offset + v.bytes;
    }
  }
  uint32_t more_registers(uint32_t bytes) {
    const uint32_t at = (program_->registers_bytes + 63) / 64 * 64;
    program_->registers_bytes = at + bytes;
    return at;
  }

  Operand constant(uint64_t bits, int width) {
    const auto [found, is_new] = constants_.emplace(std::make_pair(bits, width), 0);
    if (is_new) {
      std::vector<unsigned char>& all = program_->constants;
      found->second = all.size() | in_constants;
      all.resize(all.size() + std::max(64u, slot_bytes(width)));
      unsigned char* const at = all.data() + (found->second & ~in_constants);
      if (width == 1) bits = bits ? all_lanes : 0;
      const int bytes = width == 1 ? 4 : width / 8;
      for (int lane = 0; lane < (width == 1 ? 1 : lanes); ++lane) memcpy(at + lane * bytes, &bits, bytes);
    }
    return found->second;
  }
  Operand special(const std::string& name) {
    for (const Special& s : program_->specials)
      if (s.name == name) return s.at;
    if (name.compare(0, 5, "%tid.") && name.compare(0, 6, "%ntid.") && name.compare(0, 7, "%ctaid.") &&
        name.compare(0, 8, "%nctaid.") && name != "%laneid")
      refuse("the interpreter does not know the special register " + name);
    program_->specials.push_back({name, more_registers(slot_bytes(32))});
    return program_->specials.back().at;
  }
  uint64_t address_of(const std::string& symbol) const {
    for (const Variable& v : program_->shared)
      if (v.name == symbol) return v.offset;
    for (const Variable& v : entry_.params)
      if (v.name == symbol) return v.offset;
    refuse("the interpreter does not know " + symbol);
  }

  Operand operand(const Value& value, int width) {
    switch (value.kind) {
      case Value::reg:
        if (entry_.widths[value.index] != width)
          refuse(statement_->opcode + ": a register of " + std::to_string(entry_.widths[value.index]) +
                 " bits where " + std::to_string(width) + " are expected");
        return places_[value.index];
      case Value::number:
        return constant(value.bits, width);
      case Value::symbol:
        return constant(address_of(value.name), width);
      case Value::special:
        if (width != 32) refuse(value.name + " has 32 bits");
        return special(value.name);
      case Value::sink:
        return sinks_[width];
      default:
        refuse("an operand of " + statement_->opcode + " is not what the interpreter expects");
    }
  }

  static void flatten(const Value& value, std::vector<Value>& flat) {
    if (value.kind != Value::list) return flat.push_back(value);
    for (const Value& element : value.elements) flatten(element, flat);
  }

  // The name in the table: with what the operands add to it.
  std::string key() const {
    const std::vector<Value>& o = statement_->operands;
    std::string key = statement_->opcode;
    const std::string own = ".shared::cta.";  // what .shared means
    if (const size_t at = key.find(own); at == 2) key.replace(at, own.size(), ".shared.");
    if (key.compare(0, 4, "mov.") == 0 && o.size() == 2) {
      if (o[1].kind == Value::list) key += ":pack" + std::to_string(o[1].elements.size());
      if (o[0].kind == Value::list) key += ":unpack" + std::to_string(o[0].elements.size());
    }
    const auto has = [&](const Value& v, int bits) {
      return v.kind == Value::reg && entry_.widths[v.index] == bits;
    };
    const auto has_64_bits = [&](const Value& v) { return has(v, 64); };
    if (key == "ld.shared.b32" && has_64_bits(o.at(0))) key += ":wide";
    if ((key == "ld.shared.b16" || key == "ld.global.u16") && has(o.at(0), 32)) key += ":wide";
    if (key == "st.shared.b16" && has_64_bits(o.at(1))) key += ":low";
    if (key == "ld.param.s32" && has_64_bits(o.at(0))) key += ":wide";
    if (key.compare(0, 6, "wgmma.") == 0 && o.size() > 1 && o[1].kind != Value::list) key += ":shared";
    if (key == "cvt.s64.s32" && has_64_bits(o.at(1))) key += ":low";
    return key;
  }

  void instruction(Instruction& made) {
    const auto found = table().find(key());
    if (found == table().end()) refuse("the interpreter does not know the instruction " + key());
    const Handler& handler = found->second;
    made.run = handler.run;
    made.unit = unit_of(statement_->opcode);
    if (statement_->guard >= 0) {
      made.guarded = true;
      made.guard = places_[statement_->guard];
      made.unless = statement_->unless ? all_lanes : 0;
    }
    std::vector<Value> flat;
    for (const Value& value : statement_->operands) flatten(value, flat);
    fill_in(flat, handler.operands);
    if (flat.size() != handler.operands.size())
      refuse(statement_->opcode + " has " + std::to_string(flat.size()) +
             " operands, the interpreter expects " + std::to_string(handler.operands.size()));
    made.count = static_cast<uint8_t>(flat.size());
    made.results = results(flat.size());
    for (size_t k = 0; k < flat.size(); ++k) one_operand(made, handler, flat[k], handler.operands[k], k);
  }
  // The elements of the first operand, where it is not an address that is written to, a mask or a number.
  uint8_t results(size_t operands) const {
    const std::string& name = statement_->opcode;
    if (operands == 0 || name.compare(0, 3, "st.") == 0 || name.compare(0, 8, "stmatrix") == 0) return 0;
    const Value& first = statement_->operands[0];
    if (first.kind == Value::address || name.compare(0, 4, "bar.") == 0) return 0;
    if (first.kind == Value::number) return static_cast<uint8_t>(operands);
    return static_cast<uint8_t>(first.kind == Value::list ? first.elements.size() : 1);
  }
  // What may be left out: the predicate of a shuffle, the thread count of a barrier.
  void fill_in(std::vector<Value>& flat, const std::string& letters) const {
    if (letters == "wpwwww" && flat.size() == 5) flat.insert(flat.begin() + 1, Value{});
  }

  void one_operand(Instruction& made, const Handler& handler, const Value& value, char letter, size_t k) {
    const bool first_address = letter == 'a' && handler.operands.find('a') == k;
    if (letter == 'n') {
      if (value.kind != Value::number) refuse(statement_->opcode + " expects a number");
      made.number = static_cast<int64_t>(value.bits);
    } else if (value.kind == Value::address) {
      const Value& base = value.elements[0];
      const bool wide =
          base.kind == Value::reg ? entry_.widths[base.index] == 64 : handler.wide_address != nullptr;
      if (first_address) {
        made.number = value.displacement;
        if (wide && handler.wide_address) made.run = handler.wide_address;
        if (wide != (made.run == handler.wide_address))
          refuse(statement_->opcode + ": an address of 32 bits is expected");
      } else if (value.displacement) {
        refuse(statement_->opcode + ": the interpreter expects no displacement in the second address");
      }
      program_->operands.push_back(operand(base, wide ? 64 : 32));
      return;
    } else if (letter == 'a') {
      refuse(statement_->opcode + " expects an address");
    }
    program_->operands.push_back(letter == 'n' ? 0 : operand(value, width_of(letter)));
  }

  const Module& module_;
  const Entry& entry_;
  std::unique_ptr<Program> program_;
  std::vector<uint32_t> places_;
  std::map<int, uint32_t> sinks_;
  std::map<std::pair<uint64_t, int>, Operand> constants_;
  const Statement* statement_ = nullptr;
};

}  // namespace

std::unique_ptr<Program> decode(const Module& module, const Entry& entry) {
  const Entry whole = without_calls(module, entry);
  return Decoder(module, whole).program();
}

}  // namespace ptx
