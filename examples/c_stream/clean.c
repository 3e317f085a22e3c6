/* Cleans a WAV file (16 bits, one channel) 10 ms at a time, as it would come from a microphone: no Python, no torch.
 *
 *     python examples/streaming_audio.py --save denoiser.skp      # trains the model; noisy.wav goes to runs/
 *     cc -O2 examples/c_stream/clean.c $(python -m sequence_kernels stream --cflags --libs) -o clean
 *     ./clean denoiser.skp runs/streaming_audio/noisy.wav cleaned.wav
 */
#define _POSIX_C_SOURCE 199309L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <sequence_stream.h>

enum { HEADER = 44, MOST = 4800 /* samples of a block */ };

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int fail(const char* what, const char* why) {
  fprintf(stderr, "%s: %s\n", what, why);
  return 1;
}

static uint32_t number(const unsigned char* bytes, int count) {
  uint32_t value = 0;
  while (count-- > 0) value = value << 8 | bytes[count];
  return value;
}

int main(int count, char** arguments) {
  if (count != 4) return fail("usage", "clean model.skp noisy.wav cleaned.wav");
  const double begin = seconds();
  sequence_stream* model;
  int status = sequence_stream_open(arguments[1], 1, &model);
  if (status) return fail(arguments[1], sequence_stream_text(status));
  const double opened = seconds();
  if (sequence_stream_size(model, SEQUENCE_STREAM_INPUTS) != 1 ||
      sequence_stream_size(model, SEQUENCE_STREAM_OUTPUTS) != 1)
    return fail(arguments[1], "is not a model of one channel");

  FILE* const noisy = fopen(arguments[2], "rb");
  unsigned char header[HEADER];
  if (!noisy || fread(header, 1, HEADER, noisy) != HEADER) return fail(arguments[2], "cannot be read");
  if (memcmp(header, "RIFF", 4) || memcmp(header + 12, "fmt ", 4) || memcmp(header + 36, "data", 4) ||
      number(header + 22, 2) != 1 || number(header + 34, 2) != 16)
    return fail(arguments[2], "is not a plain WAV file of 16 bits and one channel");
  FILE* const cleaned = fopen(arguments[3], "wb");
  if (!cleaned || fwrite(header, 1, HEADER, cleaned) != HEADER) return fail(arguments[3], "cannot be written");

  const uint32_t rate = number(header + 24, 4);
  const size_t block = rate / 100 < 1 ? 1 : rate / 100 > MOST ? MOST : rate / 100;
  static unsigned char pcm[2 * MOST];
  static float x[MOST], y[MOST];
  size_t samples = 0, length;
  double busy = 0;
  while ((length = fread(pcm, 2, block, noisy)) > 0) {
    for (size_t i = 0; i < length; ++i) x[i] = (float)(int16_t)number(pcm + 2 * i, 2) / 32768;
    const double start = seconds();
    status = sequence_stream_block(model, 0, (int64_t)length, x, y);
    if (status) return fail("a block", sequence_stream_text(status));
    busy += seconds() - start;
    for (size_t i = 0; i < length; ++i) {
      const float held = y[i] > 1 ? 1 : y[i] < -1 ? -1 : y[i];
      const uint16_t bits = (uint16_t)(int16_t)(held * 32767);
      pcm[2 * i] = (unsigned char)(bits & 255), pcm[2 * i + 1] = (unsigned char)(bits >> 8);
    }
    if (fwrite(pcm, 2, length, cleaned) != length) return fail(arguments[3], "cannot be written");
    samples += length;
  }
  if (fclose(cleaned)) return fail(arguments[3], "cannot be written");
  fclose(noisy);
  sequence_stream_close(model);
  const double sound = rate ? (double)samples / rate : 0;
  printf("%zu samples in blocks of %zu; opened in %.2f ms; %.0f ns a sample, %.4f of real time\n", samples, block,
         1e3 * (opened - begin), samples ? 1e9 * busy / (double)samples : 0, sound > 0 ? busy / sound : 0);
  return 0;
}
