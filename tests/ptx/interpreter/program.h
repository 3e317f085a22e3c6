// A kernel that can run: its instructions in one array, looked up in the table, with the places of their operands.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "text.h"

namespace ptx {

constexpr int lanes = 32;
using Mask = uint32_t;  // a bit for each lane of a warp
constexpr Mask all_lanes = ~0u;

struct Warp;
struct Instruction;
using Run = void (*)(Warp&, const Instruction&);

// The 32 values of a register or a constant: so many bytes into a warp's registers or, with the top bit set, into the
// program's constants. A predicate is one Mask.
using Operand = uint32_t;
constexpr Operand in_constants = 1u << 31;

// What the clock takes an instruction for; copy, commit and wait are of cp.async, order: branches, barriers.
enum class Unit : uint8_t { arithmetic, special, tensor, shared, global, copy, commit, wait, order };

struct Instruction {
  Run run = nullptr;
  const Operand* operands = nullptr;
  int64_t number = 0;  // an address' displacement, or what else is known beforehand
  Operand guard = 0;
  bool guarded = false;
  Mask unless = 0;        // all lanes where the guard is to be false
  uint32_t target = 0;    // of a branch
  uint32_t meet = 0;      // where its two ways meet again
  uint64_t executed = 0;  // by a warp
  Unit unit = Unit::arithmetic;
  uint8_t results = 0, count = 0;  // of the operands, of which the results come first
};

// What the table has for an instruction. A letter for each operand, lists taken apart: p predicate, h, w, d registers
// of 16, 32, 64 bits, a the base of an address (32 or 64 bits: the second Run), n a number.
struct Handler {
  Run run;
  std::string operands;
  Run wide_address = nullptr;
};

struct Special {  // a special register, which holds the same in the whole block or counts its threads
  std::string name;
  Operand at;
};

struct Program {
  std::string name;
  std::vector<Instruction> code;
  std::vector<Statement> text;
  std::vector<Operand> operands;
  std::vector<unsigned char> constants;
  std::vector<Special> specials;
  std::vector<Variable> shared;  // the last one dynamic, if there is any
  std::vector<Variable> params;
  uint32_t registers_bytes = 0, params_bytes = 0;
  uint32_t shared_cell = 4;  // bytes: the smallest access
  std::map<int, std::string> files;

  std::string source(const Instruction& i) const;  // kernel.cu:12
};

// Throws where an instruction is not in the table.
std::unique_ptr<Program> decode(const Module& module, const Entry& entry);

// For each statement that may branch, the first one that both ways come to; the count of statements where they only
// meet at the end.
std::vector<uint32_t> meeting_points(const Entry& entry);

// The registers of a kernel that are never needed at the same time, in the same place: bytes for each register.
std::vector<uint32_t> places_of_registers(const Entry& entry, uint32_t& bytes);

}  // namespace ptx
