/* Steps a model: rows of float32 from standard input, outputs to standard output. `steps model.skp` */
#include <stdio.h>
#include <stdlib.h>

#include "stream/sequence_stream.h"

int main(int count, char** arguments) {
  sequence_stream* model;
  int status = count == 2 ? sequence_stream_open(arguments[1], 1, &model) : SEQUENCE_STREAM_ARGUMENT;
  if (status) return status;
  const size_t inputs = (size_t)sequence_stream_size(model, SEQUENCE_STREAM_INPUTS);
  const size_t outputs = (size_t)sequence_stream_size(model, SEQUENCE_STREAM_OUTPUTS);
  float *x = malloc(sizeof(float) * inputs), *y = malloc(sizeof(float) * outputs);
  while (!status && x && y && fread(x, sizeof(float), inputs, stdin) == inputs) {
    status = sequence_stream_step(model, 1, NULL, x, y);
    if (fwrite(y, sizeof(float), outputs, stdout) != outputs) return SEQUENCE_STREAM_UNREADABLE;
  }
  free(x), free(y);
  sequence_stream_close(model);
  return status;
}
