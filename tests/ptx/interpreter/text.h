// PTX as it is written: what parse() makes of a file, before any instruction is looked up.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ptx {

struct Value {
  enum Kind { reg, special, symbol, number, address, list, sink } kind = sink;
  std::string name;             // of a symbol or a special register
  int index = -1;               // of a register
  uint64_t bits = 0;            // of a number
  bool floating = false;        // a number that is written by its bits, 0f... or 0d...
  int64_t displacement = 0;     // of an address
  std::vector<Value> elements;  // of a list {a, b}; of an address, its base
};

struct Place {
  int file = 0, line = 0;
  int caller_file = 0, caller_line = 0;  // where it was inlined; 0: not
};

struct Statement {
  std::string opcode;  // with all its suffixes
  int guard = -1;      // a predicate register: only lanes in which it is true take part
  bool unless = false;
  std::vector<Value> operands;
  Place place;                                  // in the source
  int line = 0;                                 // in the PTX
  std::string label;                            // where a branch goes
  std::vector<std::string> results, arguments;  // of a call: the variables; the function is its label
};

struct Variable {
  std::string name;
  uint32_t align = 1, bytes = 0, offset = 0;
};

// A kernel, or a function that kernels call.
struct Entry {
  std::string name;
  std::vector<Variable> params, results, shared;
  std::vector<int> widths;  // of the registers, in bits; 1: a predicate
  std::vector<Statement> statements;
  std::map<std::string, uint32_t> labels;  // the statement that follows
  uint32_t params_bytes = 0;
};

struct Module {
  std::string target;
  std::vector<Entry> entries;
  std::map<std::string, Entry> functions;
  std::map<int, std::string> files;
  std::vector<Variable> dynamic_shared;  // extern, of no size
};

Module parse(const std::string& text);

// The kernel with the functions that it calls in the place of the calls.
Entry without_calls(const Module& module, const Entry& entry);

}  // namespace ptx
