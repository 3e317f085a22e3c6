// The C library: a saved program, its streams, and the interpreter of csrc/step_program. Without torch and libstdc++.

#include <cstdio>
#include <cstdlib>

#include "runtime/cpu_isa.h"
#include "step_program/checks.h"
#include "stream/file.h"
#include "stream/sequence_stream.h"

using namespace sequence_kernels;

struct sequence_stream {
  FileHeader header;
  int64_t streams, rows;            // rows: at most as many go through the program together
  int64_t width, levels, max_rank;  // see ProgramArguments
  Instruction* program;
  void *weights, *states, *scratch;  // in the precision of the program, as what follows
  void *x, *y;                       // (rows, inputs), (rows, outputs)
};

namespace {

// Call function(Real{}) for the precision that the program computes in.
template <typename Function>
auto with_precision(const sequence_stream& model, const Function& function) {
  return model.header.number_bytes == 8 ? function(double{}) : function(float{});
}

template <typename Real>
ProgramArguments<Real> arguments_of(const sequence_stream& model, int64_t rows) {
  ProgramArguments<Real> arguments{};
  arguments.instructions = model.header.instructions, arguments.rows = rows;
  arguments.input = model.header.inputs, arguments.output = model.header.outputs;
  arguments.width = model.width, arguments.levels = model.levels;
  arguments.state_size = model.header.state, arguments.max_rank = model.max_rank;
  arguments.program = model.program;
  arguments.weights = static_cast<const Real*>(model.weights);
  arguments.state = static_cast<Real*>(model.states);
  return arguments;
}

// Zeros, at an address that vectors like; never null for want of something to hold. Memory that is not used costs none.
void* zeros(int64_t numbers, int64_t each) {
  constexpr uintptr_t alignment = 64;
  const auto bytes = (static_cast<uint64_t>(numbers) + 1) * static_cast<uint64_t>(each);
  auto* const room = static_cast<unsigned char*>(std::calloc(bytes + alignment, 1));
  if (!room) return nullptr;
  const uintptr_t ahead = alignment - reinterpret_cast<uintptr_t>(room) % alignment;  // at least 1
  room[ahead - 1] = static_cast<unsigned char>(ahead);
  return room + ahead;
}

void release(void* zeros) {
  if (!zeros) return;
  auto* const at = static_cast<unsigned char*>(zeros);
  std::free(at - at[-1]);
}

// Takes what the program is; no memory yet.
int examine(const File& file, int64_t streams, sequence_stream& model) {
  const FileHeader& header = model.header = file.header;
  if ((header.number_bytes != 4 && header.number_bytes != 8) || header.inputs < 0 ||
      header.inputs > kMostInputs || header.state < 0 || header.state > kMostState)
    return SEQUENCE_STREAM_INVALID;
  model.program = static_cast<Instruction*>(zeros(header.instructions, sizeof(Instruction)));
  if (!model.program) return SEQUENCE_STREAM_NO_MEMORY;
  std::memcpy(model.program, file.program, static_cast<size_t>(header.instructions) * sizeof(Instruction));
  Examination found(header.inputs, header.weights, header.state);
  if (found.fault(model.program, header.instructions) || found.channels != header.outputs ||
      found.carried != header.state)
    return SEQUENCE_STREAM_INVALID;
  if (header.vocabulary < 0 || header.vocabulary >= (1 << 30) || header.embedding < 0 ||
      padded(header.vocabulary) * header.inputs > header.weights - header.embedding)
    return SEQUENCE_STREAM_INVALID;
  model.streams = streams, model.rows = streams < kRowsAtOnce ? streams : kRowsAtOnce;
  model.width = padded(found.widest) + kPanel, model.levels = found.levels, model.max_rank = found.max_rank;
  return SEQUENCE_STREAM_OK;
}

int allocate(const File& file, sequence_stream& model) {
  const FileHeader& header = model.header;
  const int64_t each = header.number_bytes;
  if (header.state > 0 && model.streams > INT64_MAX / 16 / header.state) return SEQUENCE_STREAM_NO_MEMORY;
  const int64_t scratch = with_precision(
      model, [&](auto zero) { return program_scratch(arguments_of<decltype(zero)>(model, model.rows)); });
  void** const rooms[] = {&model.weights, &model.states, &model.scratch, &model.x, &model.y};
  const int64_t numbers[] = {header.weights, model.streams * header.state, scratch,
                             model.rows * header.inputs, model.rows * header.outputs};
  for (int i = 0; i < 5; ++i)
    if (!(*rooms[i] = zeros(numbers[i], each))) return SEQUENCE_STREAM_NO_MEMORY;
  with_precision(model, [&](auto zero) { read_weights(file, static_cast<decltype(zero)*>(model.weights)); });
  return SEQUENCE_STREAM_OK;
}

// One step of `count` rows. fill(row, to) puts row `row` of x at `to`. Row i drives the stream streams[i], or first + i.
template <typename Real, typename Fill>
void advance(const sequence_stream& model, int64_t count, const int64_t* streams, int64_t first,
             const Fill& fill, float* y) {
  const int64_t inputs = model.header.inputs, outputs = model.header.outputs;
  Real *const x = static_cast<Real*>(model.x), *const from = static_cast<Real*>(model.y);
  for (int64_t begin = 0; begin < count; begin += model.rows) {
    const int64_t rows = count - begin < model.rows ? count - begin : model.rows;
    for (int64_t i = 0; i < rows; ++i)
      if (!streams || streams[begin + i] >= 0) fill(begin + i, x + i * inputs);
    ProgramArguments<Real> arguments = arguments_of<Real>(model, rows);
    if (!streams) arguments.state += (first + begin) * model.header.state;
    arguments.state_indices = streams ? streams + begin : nullptr;
    arguments.x = x, arguments.y = from;
    with_instruction_set(
        [&](auto isa) { step_program<Real, isa()>(arguments, 0, rows, static_cast<Real*>(model.scratch)); });
    for (int64_t i = 0; i < rows * outputs; ++i) y[begin * outputs + i] = static_cast<float>(from[i]);
  }
}

bool has_stream(const sequence_stream* model, int64_t stream) {
  return model && stream >= 0 && stream < model->streams;
}

// Whether a step can be made of these rows; `what` is x or tokens.
bool has_rows(const sequence_stream* model, int64_t count, const int64_t* streams, const void* what,
              const float* y) {
  if (!model || count < 0 || count > model->streams || (count > 0 && (!what || !y))) return false;
  for (int64_t i = 0; streams && i < count; ++i)
    if (streams[i] < -1 || streams[i] >= model->streams) return false;
  return true;
}

// Row `row` of x (any, inputs), as the program takes it.
template <typename Real>
auto rows_of(const sequence_stream& model, const float* x) {
  return [inputs = model.header.inputs, x](int64_t row, Real* to) {
    for (int64_t i = 0; i < inputs; ++i) to[i] = x[row * inputs + i];
  };
}

unsigned char* state_of(const sequence_stream& model, int64_t stream) {
  return static_cast<unsigned char*>(model.states) +
         stream * sequence_stream_size(&model, SEQUENCE_STREAM_STATE_BYTES);
}

// The bytes of a file; null and an error, or its size.
unsigned char* contents(std::FILE* file, size_t& size, int& status) {
  unsigned char start[sizeof(FileHeader)];
  const size_t begun = std::fread(start, 1, sizeof(start), file);
  status = std::ferror(file) ? SEQUENCE_STREAM_UNREADABLE : begins_program(start, begun);
  if (status) return nullptr;
  status = std::fseek(file, 0, SEEK_END) != 0 ? SEQUENCE_STREAM_UNREADABLE : SEQUENCE_STREAM_OK;
  const long end = status ? 0 : std::ftell(file);
  size = static_cast<size_t>(end);
  if (!status && header_of(start).size != size) status = SEQUENCE_STREAM_CUT_OFF;
  if (status) return nullptr;
  auto* const bytes = static_cast<unsigned char*>(std::malloc(size));
  std::rewind(file);
  status = !bytes                                     ? SEQUENCE_STREAM_NO_MEMORY
           : std::fread(bytes, 1, size, file) == size ? SEQUENCE_STREAM_OK
                                                      : SEQUENCE_STREAM_UNREADABLE;
  return bytes;
}

}  // namespace

const char* sequence_stream_text(int status) {
  switch (status) {
    case SEQUENCE_STREAM_OK:
      return "no error";
    case SEQUENCE_STREAM_UNREADABLE:
      return "the file cannot be read";
    case SEQUENCE_STREAM_NOT_A_PROGRAM:
      return "the file is no saved program (.skp)";
    case SEQUENCE_STREAM_OTHER_VERSION:
      return "the program is of another version of the format than this library reads";
    case SEQUENCE_STREAM_CUT_OFF:
      return "the file is shorter or longer than it says";
    case SEQUENCE_STREAM_DAMAGED:
      return "the file is damaged: its checksum is wrong";
    case SEQUENCE_STREAM_INVALID:
      return "the program in the file cannot be run";
    case SEQUENCE_STREAM_NO_MEMORY:
      return "there is not enough memory";
    case SEQUENCE_STREAM_ARGUMENT:
      return "an argument is null, out of range or of another size";
  }
  return "unknown error";
}

int sequence_stream_open(const char* path, int64_t streams, sequence_stream** model) {
  if (model) *model = nullptr;
  if (!path || !model) return SEQUENCE_STREAM_ARGUMENT;
  std::FILE* const file = std::fopen(path, "rb");
  if (!file) return SEQUENCE_STREAM_UNREADABLE;
  size_t size = 0;
  int status = SEQUENCE_STREAM_OK;
  unsigned char* const bytes = contents(file, size, status);
  std::fclose(file);
  if (!status) status = sequence_stream_open_bytes(bytes, size, streams, model);
  std::free(bytes);
  return status;
}

int sequence_stream_open_bytes(const void* bytes, size_t size, int64_t streams, sequence_stream** model) {
  if (model) *model = nullptr;
  if (!bytes || !model || streams < 1) return SEQUENCE_STREAM_ARGUMENT;
  File file;
  if (const int status = find_parts(static_cast<const unsigned char*>(bytes), size, file)) return status;
  auto* const made = static_cast<sequence_stream*>(zeros(1, sizeof(sequence_stream)));
  if (!made) return SEQUENCE_STREAM_NO_MEMORY;
  int status = examine(file, streams, *made);
  if (!status) status = allocate(file, *made);
  if (status)
    sequence_stream_close(made);
  else
    *model = made;
  return status;
}

void sequence_stream_close(sequence_stream* model) {
  if (!model) return;
  void* const rooms[] = {model->program, model->weights, model->states, model->scratch, model->x, model->y};
  for (void* room : rooms) release(room);
  release(model);
}

int64_t sequence_stream_size(const sequence_stream* model, int which) {
  if (!model) return -1;
  switch (which) {
    case SEQUENCE_STREAM_INPUTS:
      return model->header.inputs;
    case SEQUENCE_STREAM_OUTPUTS:
      return model->header.outputs;
    case SEQUENCE_STREAM_STREAMS:
      return model->streams;
    case SEQUENCE_STREAM_STATE_BYTES:
      return model->header.state * model->header.number_bytes;
    case SEQUENCE_STREAM_VOCABULARY:
      return model->header.vocabulary;
  }
  return -1;
}

int sequence_stream_step(sequence_stream* model, int64_t count, const int64_t* streams, const float* x,
                         float* y) {
  if (!has_rows(model, count, streams, x, y)) return SEQUENCE_STREAM_ARGUMENT;
  with_precision(*model, [&](auto zero) {
    using Real = decltype(zero);
    advance<Real>(*model, count, streams, 0, rows_of<Real>(*model, x), y);
  });
  return SEQUENCE_STREAM_OK;
}

int sequence_stream_step_tokens(sequence_stream* model, int64_t count, const int64_t* streams,
                                const int64_t* tokens, float* y) {
  if (!has_rows(model, count, streams, tokens, y)) return SEQUENCE_STREAM_ARGUMENT;
  for (int64_t i = 0; i < count; ++i)
    if ((!streams || streams[i] >= 0) && (tokens[i] < 0 || tokens[i] >= model->header.vocabulary))
      return SEQUENCE_STREAM_ARGUMENT;
  with_precision(*model, [&](auto zero) {
    using Real = decltype(zero);
    const int64_t inputs = model->header.inputs;
    const Real* const panels = static_cast<const Real*>(model->weights) + model->header.embedding;
    const auto fill = [=](int64_t row, Real* to) {
      const Real* const from = panels + tokens[row] / kPanel * kPanel * inputs + tokens[row] % kPanel;
      for (int64_t i = 0; i < inputs; ++i) to[i] = from[i * kPanel];
    };
    advance<Real>(*model, count, streams, 0, fill, y);
  });
  return SEQUENCE_STREAM_OK;
}

int sequence_stream_block(sequence_stream* model, int64_t stream, int64_t length, const float* x, float* y) {
  if (!has_stream(model, stream) || length < 0 || (length > 0 && (!x || !y))) return SEQUENCE_STREAM_ARGUMENT;
  with_precision(*model, [&](auto zero) {
    using Real = decltype(zero);
    for (int64_t t = 0; t < length; ++t)
      advance<Real>(*model, 1, nullptr, stream, rows_of<Real>(*model, x + t * model->header.inputs),
                    y + t * model->header.outputs);
  });
  return SEQUENCE_STREAM_OK;
}

int sequence_stream_reset(sequence_stream* model, int64_t stream) {
  if (!model || (stream != -1 && !has_stream(model, stream))) return SEQUENCE_STREAM_ARGUMENT;
  const auto each = static_cast<size_t>(sequence_stream_size(model, SEQUENCE_STREAM_STATE_BYTES));
  std::memset(state_of(*model, stream < 0 ? 0 : stream), 0,
              stream < 0 ? each * static_cast<size_t>(model->streams) : each);
  return SEQUENCE_STREAM_OK;
}

int sequence_stream_read_state(const sequence_stream* model, int64_t stream, void* state, size_t size) {
  if (!has_stream(model, stream) || !state ||
      static_cast<int64_t>(size) != sequence_stream_size(model, SEQUENCE_STREAM_STATE_BYTES))
    return SEQUENCE_STREAM_ARGUMENT;
  std::memcpy(state, state_of(*model, stream), size);
  return SEQUENCE_STREAM_OK;
}

int sequence_stream_write_state(sequence_stream* model, int64_t stream, const void* state, size_t size) {
  if (!has_stream(model, stream) || !state ||
      static_cast<int64_t>(size) != sequence_stream_size(model, SEQUENCE_STREAM_STATE_BYTES))
    return SEQUENCE_STREAM_ARGUMENT;
  std::memcpy(state_of(*model, stream), state, size);
  return SEQUENCE_STREAM_OK;
}

int sequence_stream_limit_instruction_set(int highest) {
  const int held = highest < 0 ? 0 : highest > 3 ? 3 : highest;
  return static_cast<int>(limit_instruction_set(static_cast<Isa>(held)));
}
