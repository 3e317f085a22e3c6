// The buffers that a launch may touch, which torch_cuda.cpp knows and driver.cpp checks: those of a thread.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

struct Buffer {
  const void* owner;  // torch's handle; null: an argument, which outlives the op
  std::string name;
  void* data;
  size_t bytes, element_bytes;
};
using BuffersOfThread = const std::vector<Buffer>& (*)();  // stand_in_buffers
