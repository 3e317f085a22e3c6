// What g++ 12 calls and the libstdc++ of manylinux_2_28 lacks. Hidden, like everything here.

#include <new>

namespace std {

[[noreturn]] void __throw_bad_array_new_length() {
  throw bad_array_new_length();
}

}  // namespace std
