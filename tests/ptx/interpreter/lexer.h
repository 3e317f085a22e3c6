// Cuts PTX into words, numbers and signs.
#pragma once
#include <cctype>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

struct Token {
  std::string text;
  int line;
};

inline bool in_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

inline std::vector<Token> tokens(const std::string& text) {
  std::vector<Token> found;
  int line = 1;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '\n') ++line;
    if (std::isspace(static_cast<unsigned char>(c))) {
      ++i;
    } else if (text.compare(i, 2, "//") == 0) {
      while (i < text.size() && text[i] != '\n') ++i;
    } else if (text.compare(i, 2, "/*") == 0) {
      const size_t end = text.find("*/", i);
      for (; i < end + 2; ++i) line += text[i] == '\n';
    } else if (c == '"') {
      const size_t end = text.find('"', i + 1);
      found.push_back({text.substr(i, end + 1 - i), line});
      i = end + 1;
    } else if (in_word(c)) {
      size_t end = i;
      while (end < text.size() && in_word(text[end])) ++end;
      if (text.compare(end, 2, "::") == 0) {  // fence.proxy.async.shared::cta
        end += 2;
        while (end < text.size() && in_word(text[end])) ++end;
      }
      found.push_back({text.substr(i, end - i), line});
      i = end;
    } else {
      found.push_back({std::string(1, c), line});
      ++i;
    }
  }
  return found;
}

}  // namespace ptx
