/* libsequence_stream: runs a streaming model that Python saved with `model.stepper().save("model.skp")`.
 *
 *     sequence_stream* model;
 *     int status = sequence_stream_open("model.skp", 1, &model);
 *     if (status) return complain(sequence_stream_text(status));
 *     while (read(x)) {                       // SEQUENCE_STREAM_INPUTS numbers
 *       sequence_stream_step(model, 1, NULL, x, y);
 *       write(y);                             // SEQUENCE_STREAM_OUTPUTS numbers
 *     }
 *     sequence_stream_close(model);
 *
 * A model holds the states of as many streams as it was opened for, and one copy of the weights. The results are the
 * bits of Python's `stepper.step`, on the same instruction set.
 *
 * Functions return SEQUENCE_STREAM_OK or an error, and then have changed nothing. What they are given is checked, but
 * for the room behind a pointer. After opening nothing is allocated, no lock taken and no file touched. One model is
 * one thread's at a time; different models are independent. x and y must not overlap. */
#ifndef SEQUENCE_STREAM_H
#define SEQUENCE_STREAM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SEQUENCE_STREAM_API __attribute__((visibility("default")))

typedef struct sequence_stream sequence_stream;

enum {
  SEQUENCE_STREAM_OK = 0,
  SEQUENCE_STREAM_UNREADABLE = 1,    /* no such file, or reading it failed; errno may say why */
  SEQUENCE_STREAM_NOT_A_PROGRAM = 2, /* another kind of file */
  SEQUENCE_STREAM_OTHER_VERSION = 3, /* of the format */
  SEQUENCE_STREAM_CUT_OFF = 4,       /* shorter or longer than it says */
  SEQUENCE_STREAM_DAMAGED = 5,       /* its checksum is wrong */
  SEQUENCE_STREAM_INVALID = 6,       /* a program that would leave its memory, or asks for too much of it */
  SEQUENCE_STREAM_NO_MEMORY = 7,
  SEQUENCE_STREAM_ARGUMENT = 8, /* a null pointer, a stream or token that is not there, a size that differs */
};

/* What an error means, in a sentence; of any number. */
SEQUENCE_STREAM_API const char* sequence_stream_text(int status);

/* Open a file for so many streams (at least 1), each in the state before its first row. *model is null on error. */
SEQUENCE_STREAM_API int sequence_stream_open(const char* path, int64_t streams, sequence_stream** model);

/* The same of a file's bytes, which may be freed afterwards. */
SEQUENCE_STREAM_API int sequence_stream_open_bytes(const void* bytes, size_t size, int64_t streams,
                                                   sequence_stream** model);

/* Null is fine. */
SEQUENCE_STREAM_API void sequence_stream_close(sequence_stream* model);

enum {
  SEQUENCE_STREAM_INPUTS = 0, /* numbers of a row of x */
  SEQUENCE_STREAM_OUTPUTS = 1,
  SEQUENCE_STREAM_STREAMS = 2,
  SEQUENCE_STREAM_STATE_BYTES = 3, /* of one stream */
  SEQUENCE_STREAM_VOCABULARY = 4,  /* tokens that the model takes; 0: it takes rows alone */
};

/* One of these sizes; -1 if there is none of that number, or no model. */
SEQUENCE_STREAM_API int64_t sequence_stream_size(const sequence_stream* model, int which);

/* One step of `count` streams, at most as many as there are: x (count, inputs) to y (count, outputs).
 *
 * streams (count): which one each row drives, none twice; -1: none, y is 0 there. Null: those from 0 on, in order. */
SEQUENCE_STREAM_API int sequence_stream_step(sequence_stream* model, int64_t count, const int64_t* streams,
                                             const float* x, float* y);

/* The same for tokens (count) of a language model; y (count, outputs) are scores of the next ones. */
SEQUENCE_STREAM_API int sequence_stream_step_tokens(sequence_stream* model, int64_t count,
                                                    const int64_t* streams, const int64_t* tokens, float* y);

/* `length` steps of one stream: x (length, inputs) to y (length, outputs). The bits of as many single steps. */
SEQUENCE_STREAM_API int sequence_stream_block(sequence_stream* model, int64_t stream, int64_t length,
                                              const float* x, float* y);

/* Back to the state before the first row; -1: of all streams. */
SEQUENCE_STREAM_API int sequence_stream_reset(sequence_stream* model, int64_t stream);

/* Copy a stream's state out, or in: `size` must be STATE_BYTES. It serves models opened from the same file. */
SEQUENCE_STREAM_API int sequence_stream_read_state(const sequence_stream* model, int64_t stream, void* state,
                                                   size_t size);
SEQUENCE_STREAM_API int sequence_stream_write_state(sequence_stream* model, int64_t stream, const void* state,
                                                    size_t size);

/* For tests. Of this process: no higher instruction set than 0 (generic), 1 (AVX2), 2 (AVX-512) or 3 (its
 * products of bfloat16, which no stream has) from now on. Returns what will run: the best that the machine has, unless limited. */
SEQUENCE_STREAM_API int sequence_stream_limit_instruction_set(int highest);

#ifdef __cplusplus
}
#endif

#endif
