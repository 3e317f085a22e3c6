// A fiber: a stack of its own and a way to switch to it and back. Hand-written on x86-64, ucontext elsewhere.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <stdexcept>
#if !defined(__x86_64__)
#  include <ucontext.h>
#endif

namespace emu {

#if defined(__x86_64__)
using Context = void*;
extern "C" void emu_switch_context(Context* from, Context to);
asm(R"(
.text
.type emu_switch_context,@function
emu_switch_context:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch_context,.-emu_switch_context
)");
inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  void** top =
      reinterpret_cast<void**>(stack + bytes) - 2;  // after `ret` the alignment a called function expects
  *top = reinterpret_cast<void*>(entry);
  context = top - 6;
  for (void** s = top - 6; s < top; ++s) *s = nullptr;
}
inline void switch_context(Context& from, Context& to) {
  emu_switch_context(&from, to);
}
#else
using Context = ucontext_t;
inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
inline void switch_context(Context& from, Context& to) {
  swapcontext(&from, &to);
}
#endif

class Fiber {
 public:
  static constexpr size_t stack_bytes = 256 << 10, guard_bytes = 4096;

  Fiber() {
    void* p = mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::runtime_error("emulator: no memory for a thread's stack");
    mprotect(p, guard_bytes, PROT_NONE);
    stack_ = static_cast<char*>(p) + guard_bytes;
  }
  ~Fiber() { munmap(stack_ - guard_bytes, guard_bytes + stack_bytes); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void start(void (*entry)()) { make_context(context_, stack_, stack_bytes, entry); }
  void resume() { switch_context(scheduler_, context_); }  // returns when the fiber yields
  void yield() { switch_context(context_, scheduler_); }   // returns when the fiber is resumed
  bool on_stack(uintptr_t address) const {
    return address - reinterpret_cast<uintptr_t>(stack_) < stack_bytes;
  }

 private:
  char* stack_;
  Context context_{};
  Context scheduler_{};
};

}  // namespace emu
