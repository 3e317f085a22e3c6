#include <algorithm>
#include <stdexcept>

#include "lexer.h"
#include "text.h"

namespace ptx {
namespace {

struct Family {  // .reg .f32 %f<5>: five registers; .reg .b32 temp: one
  int first, count, width;
};
using Scope = std::map<std::string, Family>;

int width_of(const std::string& type) {
  if (type == ".pred") return 1;
  const size_t digit = type.find_first_of("0123456789");
  return digit == std::string::npos ? 0 : std::stoi(type.substr(digit));
}

class Parser {
 public:
  explicit Parser(const std::string& text) : tokens_(tokens(text)) {}

  Module module() {
    while (at_ < tokens_.size()) {
      if (is(".version") || is(".address_size")) {
        at_ += 2;
      } else if (is(".target")) {
        module_.target = tokens_[at_ + 1].text;
        skip_line();
      } else if (is(".file")) {
        const int number = std::stoi(tokens_[at_ + 1].text);
        const std::string path = tokens_[at_ + 2].text;
        module_.files[number] = path.substr(1, path.size() - 2);
        skip_line();
      } else if (is(".section")) {
        at_ += 2;
        skip_braces();
      } else if (is(".visible") || is(".weak")) {
        ++at_;
      } else if (is(".entry")) {
        ++at_;
        if (entry()) module_.entries.push_back(std::move(entry_));
      } else if (is(".func")) {
        ++at_;
        if (entry()) module_.functions[entry_.name] = std::move(entry_);
      } else if (is(".extern") || is(".shared") || is(".global") || is(".const")) {
        const bool shared = is(".shared") || is(".shared", 1);
        if (is(".extern")) ++at_;
        const Variable found = variable();
        if (shared && found.bytes == 0) module_.dynamic_shared.push_back(found);
        if (shared && found.bytes != 0) statics_.push_back(found);
        skip_past(";");
      } else {
        fail("does not know what begins with " + tokens_[at_].text);
      }
    }
    return std::move(module_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    const int line = at_ < tokens_.size() ? tokens_[at_].line : tokens_.back().line;
    throw std::runtime_error("PTX line " + std::to_string(line) + ": the interpreter " + what);
  }
  bool is(const char* text, size_t ahead = 0) const {
    return at_ + ahead < tokens_.size() && tokens_[at_ + ahead].text == text;
  }
  std::string next() {
    if (at_ >= tokens_.size()) fail("found the end of the file");
    return tokens_[at_++].text;
  }
  bool take(const char* text) {
    const bool found = is(text);
    at_ += found;
    return found;
  }
  void expect(const char* text) {
    if (!take(text)) fail("expected " + std::string(text) + ", got " + tokens_[at_].text);
  }
  void skip_line() {
    for (const int line = tokens_[at_].line; at_ < tokens_.size() && tokens_[at_].line == line;) ++at_;
  }
  void skip_past(const char* text) {
    while (next() != text) {
    }
  }
  void skip_braces() {
    expect("{");
    for (int depth = 1; depth;) {
      const std::string token = next();
      depth += (token == "{") - (token == "}");
    }
  }

  // .shared .align 4 .b8 name[256]   .param .u64 .ptr .global .align 1 name
  Variable variable() {
    Variable found;
    uint32_t element = 0;
    while (tokens_[at_].text[0] == '.') {
      const std::string word = next();
      if (word == ".align") {
        const uint32_t align = std::stoul(next());
        if (!pointer_) found.align = align;
      } else if (word == ".ptr") {
        pointer_ = true;
      } else if (const int bits = width_of(word); bits && word != ".shared") {
        element = bits / 8;
      }
    }
    pointer_ = false;
    found.align = std::max(found.align, element);
    found.name = next();
    found.bytes = element;
    if (take("[")) {
      found.bytes = 0;
      if (!is("]")) found.bytes = element * std::stoul(next());
      expect("]");
    }
    return found;
  }

  std::vector<Variable> variables() {
    std::vector<Variable> found;
    expect("(");
    while (!take(")")) {
      found.push_back(variable());
      take(",");
    }
    return found;
  }

  // False where it is only declared.
  bool entry() {
    entry_ = {};
    scopes_.assign(1, {});
    place_ = {};
    if (is("(")) entry_.results = variables();
    entry_.name = next();
    entry_.params = variables();
    for (Variable& param : entry_.params) {
      param.offset = (entry_.params_bytes + param.align - 1) / param.align * param.align;
      entry_.params_bytes = param.offset + param.bytes;
    }
    while (!is("{") && !is(";")) ++at_;  // .maxntid 128 and the like
    if (take(";")) return false;
    expect("{");
    for (int depth = 1; depth;) {
      if (take("{")) {
        ++depth;
        scopes_.emplace_back();
      } else if (take("}")) {
        --depth;
        scopes_.pop_back();
      } else {
        line();
      }
    }
    entry_.shared.insert(entry_.shared.end(), statics_.begin(), statics_.end());
    return true;
  }

  void line() {
    if (is(".reg")) return registers();
    if (is(".loc")) return location();
    if (is(".shared")) {
      entry_.shared.push_back(variable());
      return expect(";");
    }
    if (is(".pragma") || is(".param")) return skip_past(";");
    if (take(";")) return;
    if (is(":", 1)) {
      entry_.labels[next()] = entry_.statements.size();
      return expect(":");
    }
    statement();
  }

  // .loc 4 36 3, function_name $L__info_string12, inlined_at 1 120 11
  void location() {
    place_ = {std::stoi(tokens_[at_ + 1].text), std::stoi(tokens_[at_ + 2].text), 0, 0};
    for (const int line = tokens_[at_].line; at_ < tokens_.size() && tokens_[at_].line == line; ++at_)
      if (is("inlined_at")) {
        place_.caller_file = std::stoi(tokens_[at_ + 1].text);
        place_.caller_line = std::stoi(tokens_[at_ + 2].text);
      }
  }

  void registers() {
    ++at_;
    const int width = width_of(next());
    if (!width) fail("does not know registers of type " + tokens_[at_ - 1].text);
    do {
      const std::string name = next();
      int count = 1;
      const bool numbered = take("<");
      if (numbered) {
        count = std::stoi(next());
        expect(">");
      }
      scopes_.back()[numbered ? name + "<" : name] = {static_cast<int>(entry_.widths.size()), count, width};
      entry_.widths.insert(entry_.widths.end(), count, width);
    } while (take(","));
    expect(";");
  }

  int find_register(const std::string& name) const {
    const size_t digits = name.find_last_not_of("0123456789") + 1;
    const bool numbered = digits < name.size() && name.size() - digits < 9;
    for (size_t s = scopes_.size(); s-- > 0;) {
      if (const auto one = scopes_[s].find(name); one != scopes_[s].end()) return one->second.first;
      if (!numbered) continue;
      const auto family = scopes_[s].find(name.substr(0, digits) + "<");
      const int number = std::stoi(name.substr(digits));
      if (family != scopes_[s].end() && number < family->second.count) return family->second.first + number;
    }
    return -1;
  }

  Value number(std::string text, bool negative) {
    Value value;
    value.kind = Value::number;
    if (text.size() > 2 && text[0] == '0' && (std::tolower(text[1]) == 'f' || std::tolower(text[1]) == 'd')) {
      value.floating = true;
      value.bits = std::stoull(text.substr(2), nullptr, 16);
      if (negative) fail("does not know a negative " + text);
    } else {
      if (text.back() == 'U') text.pop_back();
      value.bits = std::stoull(text, nullptr, 0);
      if (negative) value.bits = -value.bits;
    }
    return value;
  }

  Value value() {
    Value found;
    const std::string word = next();
    if (word == "{") {
      found.kind = Value::list;
      do {
        found.elements.push_back(value());
      } while (take(","));
      expect("}");
    } else if (word == "[") {
      found.kind = Value::address;
      found.elements.push_back(value());
      while (take("+") || is("-")) {
        const bool negative = take("-");
        found.displacement += static_cast<int64_t>(number(next(), negative).bits);
      }
      expect("]");
    } else if (word == "_") {
      found.kind = Value::sink;
    } else if (word == "-" || std::isdigit(static_cast<unsigned char>(word[0]))) {
      found = number(word == "-" ? next() : word, word == "-");
    } else if (const int index = find_register(word); index >= 0) {
      found.kind = Value::reg;
      found.index = index;
    } else {
      found.kind = word[0] == '%' ? Value::special : Value::symbol;
      found.name = word;
    }
    return found;
  }

  // call.uni (result), function, (argument, argument)
  void call(Statement& found) {
    const auto names = [&](std::vector<std::string>& to) {
      expect("(");
      while (!take(")")) {
        to.push_back(next());
        take(",");
      }
    };
    if (is("(")) {
      names(found.results);
      expect(",");
    }
    found.label = next();
    if (take(",")) names(found.arguments);
  }

  void statement() {
    Statement found;
    found.place = place_;
    found.line = tokens_[at_].line;
    if (take("@")) {
      found.unless = take("!");
      found.guard = find_register(next());
      if (found.guard < 0) fail("does not know the predicate " + tokens_[at_ - 1].text);
    }
    found.opcode = next();
    if (found.opcode == "call.uni") call(found);
    while (!take(";")) {
      found.operands.push_back(value());
      if (!take(",") && !take("|") && !is(";"))
        fail("cannot read an operand of " + found.opcode + " at " + tokens_[at_].text);
    }
    if (found.opcode == "bra" || found.opcode == "bra.uni") {
      found.label = found.operands.at(0).name;
      found.operands.clear();
    }
    entry_.statements.push_back(std::move(found));
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  bool pointer_ = false;
  Module module_;
  Entry entry_;
  std::vector<Variable> statics_;
  std::vector<Scope> scopes_;
  Place place_;
};

}  // namespace

Module parse(const std::string& text) {
  return Parser(text).module();
}

}  // namespace ptx
