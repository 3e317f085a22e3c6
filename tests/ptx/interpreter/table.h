// All instructions that the interpreter knows, by their full names; families add theirs.
#pragma once
#include <map>
#include <string>

#include "each.h"

namespace ptx {

using Table = std::map<std::string, Handler>;
const Table& table();

void add_integers(Table& table);
void add_floats(Table& table);
void add_logic(Table& table);
void add_conversions(Table& table);
void add_memory(Table& table);
void add_copies(Table& table);
void add_control(Table& table);
void add_collectives(Table& table);
void add_tensor_cores(Table& table);
void add_warp_groups(Table& table);

}  // namespace ptx
