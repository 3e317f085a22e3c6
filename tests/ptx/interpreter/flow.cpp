// Where the two ways of a branch meet again: its immediate post-dominator (Cooper, Harvey and Kennedy's iteration).
#include <stdexcept>

#include "program.h"

namespace ptx {

std::vector<std::vector<uint32_t>> successors(const Entry& entry) {
  const uint32_t count = entry.statements.size();
  std::vector<std::vector<uint32_t>> found(count);
  for (uint32_t i = 0; i < count; ++i) {
    const Statement& s = entry.statements[i];
    if (!s.label.empty()) found[i].push_back(entry.labels.at(s.label));
    const bool ends = !s.label.empty() || s.opcode == "ret";
    if (!ends || s.guard >= 0) found[i].push_back(i + 1);
  }
  return found;
}

std::vector<uint32_t> meeting_points(const Entry& entry) {
  const uint32_t end = entry.statements.size(), unknown = ~0u;
  const auto next = successors(entry);
  std::vector<std::vector<uint32_t>> before(end + 1);
  for (uint32_t i = 0; i < end; ++i) {
    for (uint32_t n : next[i]) before[n].push_back(i);
    if (next[i].empty()) before[end].push_back(i);
  }
  // Statements in the order in which a walk backwards from the end leaves them.
  std::vector<uint32_t> order, place(end + 1, unknown);
  std::vector<std::pair<uint32_t, size_t>> stack = {{end, 0}};
  std::vector<bool> seen(end + 1);
  seen[end] = true;
  while (!stack.empty()) {
    auto& [at, k] = stack.back();
    if (k < before[at].size()) {
      const uint32_t to = before[at][k++];
      if (!seen[to]) seen[to] = true, stack.emplace_back(to, 0);
    } else {
      place[at] = order.size();
      order.push_back(at);
      stack.pop_back();
    }
  }
  std::vector<uint32_t> dominator(end + 1, unknown);
  dominator[end] = end;
  const auto common = [&](uint32_t a, uint32_t b) {
    while (a != b) {
      while (place[a] < place[b]) a = dominator[a];
      while (place[b] < place[a]) b = dominator[b];
    }
    return a;
  };
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t k = order.size() - 1; k-- > 0;) {
      const uint32_t at = order[k];
      uint32_t found = next[at].empty() ? end : unknown;
      for (uint32_t n : next[at])
        if (dominator[n] != unknown) found = found == unknown ? n : common(found, n);
      if (dominator[at] != found) dominator[at] = found, changed = true;
    }
  }
  return dominator;
}

}  // namespace ptx
